"""A recipe of three tiny random foundation teachers in their published layouts, for the tests that learn from them.

`python -m tests.export.foundations FOLDER` writes recipe and checkpoints, for `insite-export bench --features`.
"""

import sys
from pathlib import Path

from export.artefacts import file_sha256
from tests.export.conftest import RECIPE
from tests.fakes import checkpoints

AGGLOMERATION = """
[agglomeration]
views = 2
grid = 4
cached_batch = 8
batch = 8
steps = 6
rate = 1e-3
weight_decay = 0.02
scaling = "phi-s"
dense_weight = 1.0
pooled_weight = 1.0
smooth_weight = 0.5
checkpoint_steps = 2
"""


def write_checkpoints(folder: Path) -> Path:
    """Three tiny random teachers, each in its folder."""
    checkpoints.rad_dino(folder / "rad-dino")
    checkpoints.medsam(folder / "medsam")
    checkpoints.biomedclip(folder / "biomedclip")
    return folder


def write_question(folder: Path) -> tuple[Path, Path]:
    """A recipe with the three teachers, and the folder of their checkpoints, for `insite-export bench --features`."""
    checkpoints_folder = write_checkpoints(folder / "checkpoints")
    recipe = folder / "recipe.toml"
    recipe.write_text(three_teachers(RECIPE, checkpoints_folder))
    return recipe, checkpoints_folder


def three_teachers(recipe: str, folder: Path, *, steps: int = 6) -> str:
    """A recipe's text with the three teachers of a folder."""
    recipe = recipe.replace("starts_from_second_teacher = true", "starts_from_second_teacher = false")
    parts = [recipe, AGGLOMERATION.replace("steps = 6", f"steps = {steps}", 1)]
    for name in ("rad-dino", "medsam", "biomedclip"):
        parts.append(f'[[foundation]]\nname = "{name}"\nkind = "{name}"\ncheckpoint = "{name}"\n')
        parts.append('licence = "random weights of a test"\nresearch_only = false\nweight = 1.0\n')
        digests = "".join(
            f'"{path.name}" = "{file_sha256(path)}"\n' for path in sorted((folder / name).iterdir()) if path.is_file()
        )
        parts.append(f"[foundation.digests]\n{digests}")
    return "\n".join(parts)


if __name__ == "__main__":
    write_question(Path(sys.argv[1]))
