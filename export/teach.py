"""Steps `teachers`: fine-tune published nets on the labelled radiographs; the student learns from their mean."""

from collections.abc import Callable
from pathlib import Path

import torch

from export.images import ImageSet
from export.learning import Batch, Training, supervised_loss, train
from export.pretrained import load_published
from export.recipe import Recipe, TeacherSection
from export.student import MultiTaskNet, architecture_named

WEIGHTS = "teacher.safetensors"
SECOND, ANOTHER = 101, 211
"""Added to the seed for the second teacher, and for each further training of a teacher."""


def weights_in(folder: Path, training: int) -> Path:
    """Where the weights of a teacher's training, counted from 0, lie in the folder of its step."""
    return (folder / f"training-{training + 1}" if training else folder) / WEIGHTS


def teach_all(
    recipe: Recipe, section: TeacherSection, seed: int, data: ImageSet, *, out: Path, say: Callable[[str], None]
) -> None:
    """Train a teacher as often as its section says, each time by other chance; see `teach` and `weights_in`."""
    for training in range(section.trainings):
        folder = weights_in(out, training).parent
        folder.mkdir(exist_ok=True)
        teach(recipe, section, seed + ANOTHER * training, data, out=folder, say=say)


def teach(
    recipe: Recipe, section: TeacherSection, seed: int, data: ImageSet, *, out: Path, say: Callable[[str], None]
) -> None:
    """Train one teacher and write its weights to `<out>/teacher.safetensors`.

    Args:
        recipe: For the input's numbers.
        section: Decides everything else.
        seed: Fixes its random choices; another one for each teacher, or their mistakes agree.
        data: The prepared radiographs; those of the split `train` are learned from.
        out: Folder to work in; holds a checkpoint until the training is finished.
        say: Told about progress.
    """
    torch.manual_seed(seed)
    net = MultiTaskNet(architecture_named(section.architecture))
    load_published(net.encoder)

    def loss_of(batch: Batch) -> torch.Tensor:
        return supervised_loss(net(batch.image), batch)

    name = "second_teacher" if section is recipe.second_teacher else "teacher"
    run = Training(data, recipe.input, section, seed, out, say, name)
    train(net, net, run, loss_of, out / WEIGHTS)
