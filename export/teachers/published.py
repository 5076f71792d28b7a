"""Where each known teacher is published, in which files, and under which licence: what is said when one is missing."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Publication:
    """One published checkpoint.

    Attributes:
        files: What its folder must hold, by the publisher's names.
        origin: Who publishes it, and under which name.
        licence: As the publisher states it.
        research_only: Whether licence or model card keep it from products that are used on patients.
    """

    files: tuple[str, ...]
    origin: str
    licence: str
    research_only: bool


PUBLICATIONS = {
    "rad-dino": Publication(
        ("config.json", "model.safetensors", "preprocessor_config.json"),
        "Hugging Face, microsoft/rad-dino",
        "MSRLA in its first revisions, MIT in later ones; the model card says research only, not for clinical practice",
        research_only=True,
    ),
    "medsam": Publication(
        ("medsam_vit_b.pth",),
        "the MedSAM repository, bowang-lab/MedSAM (link to its model folder)",
        "Apache-2.0",
        research_only=False,
    ),
    "biomedclip": Publication(
        ("open_clip_config.json", "open_clip_pytorch_model.bin", "tokenizer.json", "config.json"),
        "Hugging Face, microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224; config.json is the text tower's, from "
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "MIT; the model card puts deployed use out of scope",
        research_only=True,
    ),
}
"""By the recipe's `kind`. Licences change with revisions: read the one that lies beside what you downloaded."""
