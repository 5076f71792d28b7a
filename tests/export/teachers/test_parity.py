"""Every teacher says what its publisher's library says of the same checkpoint and the same pixels."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from export.encoder import TimmEncoder
from export.student import ARCHITECTURES
from export.teachers.biomedclip import BiomedClip
from export.teachers.contract import Teacher, grid_of_tokens, prepared
from export.teachers.medsam import MedSam
from export.teachers.rad_dino import RadDino
from tests.export.teachers.conftest import STUDENTS, TEXTS, Pinned
from tests.export.teachers.reference_child import NAMES

Tensors = dict[str, Tensor]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
SAID = ("dense", "pooled", "logits")
LESS = ("transformers", "logits")


@torch.no_grad()
def test_rad_dino_equals_transformers(given: Tensors, expected: Tensors, pinned: Pinned) -> None:
    """RAD-DINO's class token and patch tokens are those of transformers' Dinov2Model."""
    teacher = RadDino(pinned("rad-dino", "rad-dino")).eval()
    seen = teacher.see(given["images"])
    tokens = expected["rad_dino/tokens"]
    torch.testing.assert_close(seen.pooled, expected["rad_dino/pooled"], **TOLERANCE)
    torch.testing.assert_close(seen.dense, grid_of_tokens(tokens[:, 1:]), **TOLERANCE)


@torch.no_grad()
def test_medsam_equals_segment_anything(given: Tensors, expected: Tensors, pinned: Pinned) -> None:
    """MedSAM's image embedding, and its mask for a box, are those of segment-anything."""
    teacher = MedSam(pinned("medsam", "medsam")).eval()
    torch.testing.assert_close(teacher.see(given["images"]).dense, expected["medsam/dense"], **TOLERANCE)
    masks = teacher.masks(given["images"], given["boxes"])
    torch.testing.assert_close(masks, expected["medsam/masks"], **TOLERANCE)
    assert masks.std() > 0


@torch.no_grad()
def test_biomedclip_equals_open_clip(given: Tensors, expected: Tensors, pinned: Pinned) -> None:
    """BiomedCLIP's image tower, tokenizer and text tower are those of open_clip."""
    teacher = BiomedClip(pinned("biomedclip", "biomedclip")).eval()
    seen = teacher.see(given["images"])
    torch.testing.assert_close(seen.pooled, expected["biomedclip/pooled"], **TOLERANCE)
    torch.testing.assert_close(seen.dense, grid_of_tokens(expected["biomedclip/tokens"][:, 1:]), **TOLERANCE)
    numbers = torch.tensor([encoding.ids for encoding in teacher.tokenizer.encode_batch(TEXTS)])
    assert torch.equal(numbers, expected["biomedclip/numbers"])
    torch.testing.assert_close(teacher.read(TEXTS), expected["biomedclip/texts"], **TOLERANCE)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in NAMES for kind in SAID if (name, kind) != LESS])
def test_a_model_by_name_equals_its_library(expected: Tensors, name: str, kind: str) -> None:
    """Any timm or transformers vision model can teach: every place of its map, its pooled features and its logits."""
    ours, theirs = (expected[f"by_name/{name}.{whose}.{kind}"] for whose in ("ours", "theirs"))
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    assert theirs.std() > 100 * TOLERANCE["atol"]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_by_name_makes_its_librarys_pixels(expected: Tensors, name: str) -> None:
    """Side, scale, mean and interpolation are those that the library would take; only its rounding is left out."""
    ours, theirs, level = (expected[f"by_name/{name}.{key}"] for key in ("ours.pixels", "theirs.pixels", "level"))
    assert_same_pixels(ours, theirs, level)


@pytest.mark.parametrize(("kind", "name"), [(RadDino, "rad-dino"), (BiomedClip, "biomedclip")])
@torch.no_grad()
def test_a_teacher_makes_its_publishers_pixels(
    given: Tensors, expected: Tensors, pinned: Pinned, kind: type[RadDino | BiomedClip], name: str
) -> None:
    """From the picture on: transformers' BitImageProcessor and open_clip's transform, and then the features.

    The features may differ by what one grey level of brightness makes of them.
    """
    teacher, part = kind(pinned(name, name)).eval(), name.replace("-", "_")
    own, level = expected[f"{part}/own_pixels"], expected[f"{part}/level"]
    assert_same_pixels(prepared(given["calm"], teacher.preparation), own, level)
    seen = teacher.see(given["calm"])
    if kind is BiomedClip:
        assert_within(seen.pooled, expected[f"{part}/own_pooled"], expected[f"{part}/brighter_pooled"])
        return
    own, brighter = expected[f"{part}/own_tokens"], expected[f"{part}/brighter_tokens"]
    assert_within(seen.pooled, own[:, 0], brighter[:, 0])
    assert_within(seen.dense, grid_of_tokens(own[:, 1:]), grid_of_tokens(brighter[:, 1:]))


@torch.no_grad()
def test_medsam_makes_its_publishers_pixels(given: Tensors, expected: Tensors, pinned: Pinned) -> None:
    """From the picture on: the resize, whole levels and range of the published script, and then the features.

    The script interpolates by splines and cuts the fractions of grey levels off, we convolve and keep them: pixels are
    one level apart on average at most, and two at worst.
    """
    teacher = MedSam(pinned("medsam", "medsam")).eval()
    apart = (teacher.pixels(given["waves"]) - expected["medsam/own_pixels"]).abs() / expected["medsam/level"]
    assert apart.mean() < 1
    assert apart.max() < 2
    assert_within(teacher.see(given["waves"]).dense, expected["medsam/own_dense"], expected["medsam/brighter_dense"])


def assert_same_pixels(ours: Tensor, theirs: Tensor, level: Tensor) -> None:
    """Equal but for rounding: libraries round to whole grey levels after each of the two directions of a resize."""
    apart = (ours - theirs).abs() / level
    assert apart.mean() < 0.5
    assert apart.max() < 1.5


def assert_within(ours: Tensor, theirs: Tensor, brighter: Tensor) -> None:
    """Features differ on average by no more than one grey level of brightness changes them."""
    assert (ours - theirs).abs().mean() < (brighter - theirs).abs().mean()


@pytest.mark.parametrize("name", STUDENTS)
@torch.no_grad()
def test_a_student_equals_timm(references: Path, given: Tensors, expected: Tensors, name: str) -> None:
    """A student with timm's weights sees what timm's model sees in a picture with the same border."""
    encoder = ARCHITECTURES[name].encoder().eval().double()
    assert isinstance(encoder, TimmEncoder)
    published = {key: each.double() for key, each in load_file(references / f"{name}.safetensors").items()}
    encoder.load_state_dict(encoder.state_from_timm(published))
    embedding, *maps = encoder(given["images"])
    assert [each.shape[1] for each in maps] == list(ARCHITECTURES[name].feature_widths)
    assert embedding.shape[1] == ARCHITECTURES[name].embedding
    # timm's last map of a MobileNet is the one that goes into the embedding.
    compared = maps[:3] if name.startswith("mobilenet") else maps
    torch.testing.assert_close(embedding, expected[f"students/{name}.embedding"], **TOLERANCE)
    for number, ours in enumerate(compared):
        torch.testing.assert_close(ours, expected[f"students/{name}.map{number}"], **TOLERANCE)


@pytest.mark.parametrize("kind", [RadDino, MedSam, BiomedClip])
def test_what_a_teacher_can_not_do_it_says_so(given: Tensors, pinned: Pinned, kind: type[Teacher]) -> None:
    """Only MedSAM outlines, only BiomedCLIP reads; the others answer None."""
    names = {RadDino: "rad-dino", MedSam: "medsam", BiomedClip: "biomedclip"}
    teacher = kind(pinned(names[kind], names[kind]))  # type: ignore[call-arg,arg-type]
    assert (teacher.masks(given["images"], given["boxes"]) is None) == (kind is not MedSam)
    assert (teacher.read(TEXTS) is None) == (kind is not BiomedClip)
    assert teacher.see(given["images"]).logits is None
