"""Every teacher says what its publisher's library says of the same checkpoint and the same pixels."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from export.encoder import TimmEncoder
from export.student import ARCHITECTURES
from export.teachers.biomedclip import BiomedClip
from export.teachers.contract import Teacher, grid_of_tokens
from export.teachers.medsam import MedSam
from export.teachers.rad_dino import RadDino
from tests.export.teachers.conftest import STUDENTS, TEXTS, Pinned

Tensors = dict[str, Tensor]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


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


@pytest.mark.parametrize("name", ["timm.vit_tiny_patch16_224", "timm.resnet10t", "transformers"])
def test_a_model_by_name_equals_its_library(expected: Tensors, name: str) -> None:
    """Any timm or transformers vision model can teach; its outputs are the library's own."""
    torch.testing.assert_close(expected[f"by_name/{name}.ours"], expected[f"by_name/{name}.theirs"], **TOLERANCE)
    assert expected[f"by_name/{name}.dense"].ndim == 4


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
