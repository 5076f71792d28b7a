"""The generated code is what the .proto file says now."""

from pathlib import Path

from appliance.inference.proto.generate import FILES, PACKAGE, generate


def test_the_generated_code_is_up_to_date(repository: Path, tmp_path: Path) -> None:
    """`make proto` would change nothing."""
    (tmp_path / PACKAGE).mkdir(parents=True)
    generate(tmp_path)
    for name in FILES:
        assert (tmp_path / PACKAGE / name).read_text() == (repository / PACKAGE / name).read_text(), name
