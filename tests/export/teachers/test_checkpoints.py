"""Checkpoints come from a local folder, pinned, and nothing in them is executed."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from appliance.domain.errors import InputError, SettingsError
from export.artefacts import file_sha256
from export.recipe_foundation import FoundationTeacher
from export.student import ARCHITECTURES, MultiTaskNet
from export.teachers.checkpoints import Checkpoint
from export.teachers.ensemble import Ensemble
from export.teachers.libraries import library
from export.teachers.rad_dino import preparation_of
from export.teachers.shelf import teacher_from_recipe
from export.teachers.timm_model import map_of
from tests.export.foundations import write_checkpoints

IMAGES = torch.randint(0, 256, (2, 1, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[0.1, 0.1, 0.9, 0.9]] * 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tiny random RAD-DINO, MedSAM and BiomedCLIP, and a classifier of the site's own."""
    write_checkpoints(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    torch.manual_seed(0)
    save_file(MultiTaskNet(ARCHITECTURES["narrow"]).state_dict(), own / "teacher.safetensors")
    return tmp_path


def section(folder: Path, kind: str, checkpoint: str, **others: object) -> FoundationTeacher:
    """A teacher of a recipe with every file of its folder pinned."""
    digests = {path.name: file_sha256(path) for path in (folder / checkpoint).iterdir()}
    plain = FoundationTeacher(checkpoint, kind, "", research_only=False, weight=1.0, checkpoint=checkpoint)
    return dataclasses.replace(plain, digests=digests, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "file", "licence"),
    [
        ("rad-dino", "model.safetensors", "MSRLA"),
        ("medsam", "medsam_vit_b.pth", "Apache-2.0"),
        ("biomedclip", "tokenizer.json", "MIT"),
    ],
)
def test_a_missing_file_is_named_with_its_publisher_and_licence(
    folder: Path, kind: str, file: str, licence: str
) -> None:
    """A checkpoint that is not there: file, where it is published, and what licence it carries."""
    teacher = section(folder, kind, kind)
    (folder / kind / file).unlink()
    with pytest.raises(InputError) as caught:
        teacher_from_recipe(teacher, [teacher], folder)
    assert file in caught.value.message
    assert "ublished by" in caught.value.way_forward
    assert licence in caught.value.way_forward


@pytest.mark.parametrize("kind", ["timm", "transformers", "classifier"])
def test_a_missing_file_of_another_kind_is_named_with_the_recipes_licence(tmp_path: Path, kind: str) -> None:
    """Who publishes it is the recipe's affair; the licence that it states is said."""
    digests = {"model.safetensors": "0" * 64}
    teacher = FoundationTeacher("other", kind, "CC BY 4.0", research_only=False, weight=1.0, digests=digests)
    with pytest.raises(InputError, match=r"lacks .*model\.safetensors.* the recipe states it: CC BY 4\.0\."):
        teacher_from_recipe(teacher, [teacher], tmp_path)


def test_an_altered_file_is_refused(folder: Path) -> None:
    """One other byte, and the file is not the pinned one."""
    teacher = section(folder, "medsam", "medsam")
    with (folder / "medsam" / "medsam_vit_b.pth").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(InputError, match="is not the file that the recipe pins"):
        teacher_from_recipe(teacher, [teacher], folder)


def test_a_file_that_is_not_pinned_is_not_read(folder: Path) -> None:
    """Without a digest in the recipe a file of the published layout is not opened."""
    teacher = dataclasses.replace(section(folder, "medsam", "medsam"), digests={"medsam_vit_b.pth": ""})
    with pytest.raises(SettingsError, match=r"pins no digest of medsam_vit_b\.pth"):
        teacher_from_recipe(teacher, [teacher], folder)


class _Trap:
    """What a hostile pickle does when it is opened."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trap"),)  # type: ignore[return-value]


def test_a_pickle_with_code_is_refused_and_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that holds more than tensors is refused before anything in it runs."""
    monkeypatch.chdir(folder)
    torch.save({"image_encoder.pos_embed": _Trap()}, folder / "medsam" / "medsam_vit_b.pth")
    teacher = section(folder, "medsam", "medsam")
    with pytest.raises(InputError, match="holds more than tensors"):
        teacher_from_recipe(teacher, [teacher], folder)
    (folder / "medsam" / "medsam_vit_b.pth").write_bytes(pickle.dumps(_Trap(), protocol=2))
    teacher = section(folder, "medsam", "medsam")
    with pytest.raises(InputError):
        teacher_from_recipe(teacher, [teacher], folder)
    assert not (folder / "trap").exists()


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        ("rad-dino", "model.safetensors", b"no safetensors"),
        ("rad-dino", "config.json", b"{"),
        ("rad-dino", "config.json", b"[]"),
        ("rad-dino", "config.json", b'{"model_type": "vit"}'),
        ("rad-dino", "config.json", b'{"model_type": "dinov2"}'),
        ("rad-dino", "preprocessor_config.json", b"{}"),
        ("medsam", "medsam_vit_b.pth", b"no checkpoint"),
        ("medsam", "medsam_vit_b.pth", b""),
        ("biomedclip", "open_clip_config.json", b"{}"),
        ("biomedclip", "config.json", b"{}"),
        ("biomedclip", "tokenizer.json", b"{}"),
    ],
)
def test_a_damaged_file_is_a_sentence(folder: Path, kind: str, file: str, content: bytes) -> None:
    """Whatever is wrong with a file, the answer names it and says where to get it."""
    (folder / kind / file).write_bytes(content)
    teacher = section(folder, kind, kind)
    with pytest.raises(InputError) as caught:
        teacher_from_recipe(teacher, [teacher], folder)
    assert "ublished by" in caught.value.way_forward


def test_another_layout_is_refused_with_the_first_key_that_does_not_fit(folder: Path) -> None:
    """A checkpoint of other keys is not loaded half."""
    state = torch.load(folder / "medsam" / "medsam_vit_b.pth", weights_only=True)
    del state["prompt_encoder.no_mask_embed.weight"]
    torch.save(state, folder / "medsam" / "medsam_vit_b.pth")
    teacher = section(folder, "medsam", "medsam")
    with pytest.raises(InputError, match="no_mask_embed"):
        teacher_from_recipe(teacher, [teacher], folder)
    torch.save({}, folder / "medsam" / "medsam_vit_b.pth")
    teacher = section(folder, "medsam", "medsam")
    with pytest.raises(InputError, match="it lacks"):
        teacher_from_recipe(teacher, [teacher], folder)
    torch.save([torch.zeros(1)], folder / "medsam" / "medsam_vit_b.pth")
    teacher = section(folder, "medsam", "medsam")
    with pytest.raises(InputError, match="no table of tensors"):
        teacher_from_recipe(teacher, [teacher], folder)


def test_a_checkpoint_of_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    """Neither NumPy pickles nor anything else but safetensors and torch's tensors is opened."""
    (tmp_path / "weights.npy").write_bytes(b"x")
    checkpoint = Checkpoint("x", "other", tmp_path, {"weights.npy": file_sha256(tmp_path / "weights.npy")})
    with pytest.raises(InputError, match="no checkpoint that can be read"):
        checkpoint.state("weights.npy")


def test_a_library_that_can_not_be_loaded_is_a_sentence() -> None:
    """Where timm or transformers can't be imported, the reason is repeated and the manual named."""
    with pytest.raises(InputError, match="no_such_library can't be loaded"):
        library("no_such_library")


@pytest.mark.parametrize(("resample", "mode"), [(2, "bilinear"), (3, "bicubic"), (None, "bicubic")])
def test_pictures_are_resized_as_the_preprocessor_says(folder: Path, resample: int | None, mode: str) -> None:
    """Pillow's number for the filter becomes torch's name; bicubic, RAD-DINO's, where none is given."""
    path = folder / "rad-dino" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resample": resample}))
    checkpoint = Checkpoint("x", "rad-dino", path.parent, {path.name: file_sha256(path)})
    assert preparation_of(checkpoint, 56).mode == mode


def test_a_sites_own_classifier_teaches_with_logits_and_masks(folder: Path) -> None:
    """The present kind of teacher is one of the shelf too: features, logits of both triage tasks, lung masks."""
    teacher = teacher_from_recipe(section(folder, "classifier", "own", model="narrow"), [], folder)
    seen = teacher.see(IMAGES)
    assert seen.logits is not None
    assert seen.logits.shape == (2, 2)
    assert seen.dense.shape[2:] == (4, 4)
    masks = teacher.masks(IMAGES, BOXES)
    assert masks is not None
    assert masks.shape[:2] == (2, 1)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_an_ensemble_is_a_teacher(folder: Path) -> None:
    """Features of the members stand side by side on the first one's grid; masks and logits are averaged."""
    members = [
        section(folder, "rad-dino", "rad-dino"),
        section(folder, "medsam", "medsam"),
        section(folder, "classifier", "own", model="narrow"),
    ]
    both = FoundationTeacher("both", "ensemble", "", research_only=False, weight=1.0, members=("rad-dino", "medsam"))
    seen = teacher_from_recipe(both, members, folder).see(IMAGES)
    assert seen.dense.shape == (2, 64, 4, 4)
    assert seen.pooled.shape == (2, 64)
    assert seen.logits is None
    twice = teacher_from_recipe(dataclasses.replace(both, members=("own", "own")), members, folder)
    own = teacher_from_recipe(members[2], members, folder)
    logits, alone = twice.see(IMAGES).logits, own.see(IMAGES).logits
    assert logits is not None
    assert alone is not None
    torch.testing.assert_close(logits, alone)
    assert twice.masks(IMAGES, BOXES) is not None
    assert teacher_from_recipe(dataclasses.replace(both, members=("rad-dino",)), members, folder).masks(
        IMAGES, BOXES
    ) is None  # fmt: skip


@pytest.mark.parametrize("members", [("nobody",), ("self",)])
def test_an_ensemble_of_what_is_not_there_is_refused(tmp_path: Path, members: tuple[str, ...]) -> None:
    """Members are other teachers of the recipe, and no ensembles."""
    alone = FoundationTeacher("self", "ensemble", "", research_only=False, weight=1.0, members=members)
    with pytest.raises(SettingsError, match="names the member"):
        teacher_from_recipe(alone, [alone], tmp_path)
    with pytest.raises(InputError, match="no members"):
        Ensemble("self", [])


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """The known kinds are listed."""
    teacher = FoundationTeacher("x", "oracle", "", research_only=False, weight=1.0)
    with pytest.raises(SettingsError, match="rad-dino, medsam, biomedclip, timm"):
        teacher_from_recipe(teacher, [teacher], tmp_path)


def test_an_unknown_architecture_of_a_classifier_is_refused(folder: Path) -> None:
    """The teacher is named, and the architectures are listed."""
    teacher = section(folder, "classifier", "own", model="giant")
    with pytest.raises(InputError, match="own: No architecture is named 'giant'"):
        teacher_from_recipe(teacher, [teacher], folder)


def test_maps_come_channels_first_from_every_kind_of_model() -> None:
    """Tokens, maps with channels first and maps with channels last all become [N, C, h, w]."""
    assert map_of(torch.zeros(2, 5, 8), 8, 1).shape == (2, 8, 2, 2)
    assert map_of(torch.zeros(2, 8, 3, 3), 8, 0).shape == (2, 8, 3, 3)
    assert map_of(torch.zeros(2, 3, 3, 8), 8, 0).shape == (2, 8, 3, 3)
    with pytest.raises(InputError, match="no square grid"):
        map_of(torch.zeros(2, 7, 8), 8, 0)


def test_a_swapped_tokenizer_does_not_pass(folder: Path) -> None:
    """Every file that decides what a teacher says is pinned, the tokenizer too."""
    teacher = section(folder, "biomedclip", "biomedclip")
    path = folder / "biomedclip" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["chest"], values["model"]["vocab"]["of"] = 12, 5
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"tokenizer\.json of the teacher biomedclip is not the file"):
        teacher_from_recipe(teacher, [teacher], folder)
    shutil.rmtree(folder / "biomedclip")
