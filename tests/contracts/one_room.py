"""An import contract: each library is imported directly by its own rooms and by nobody else."""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class OneRoomContract(Contract):
    """Reads a table `library: room, room`; any other module that imports the library breaks the contract."""

    rooms = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: FBT001 - the library's signature
        """Find every direct import of a listed library from outside its rooms."""
        del verbose
        strangers = [
            (library, module, allowed)
            for library, allowed in map(_row, self.rooms)
            if library in graph.modules
            for module in sorted(graph.find_modules_that_directly_import(library))
            if not any(module == room or module.startswith(f"{room}.") for room in allowed)
        ]
        return ContractCheck(kept=not strangers, metadata={"strangers": strangers})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Name each import that is in the wrong room."""
        for library, module, allowed in check.metadata["strangers"]:
            output.print_error(f"{module} imports {library}, which lives in {', '.join(allowed)}.")


def _row(row: str) -> tuple[str, list[str]]:
    library, _, rooms = row.partition(":")
    return library, [room.strip() for room in rooms.split(",")]
