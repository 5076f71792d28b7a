"""The gate: rules with bounds from the recipe; a pack that breaks one is not made.

A rule may be waived by name in the recipe. It then stands in report and card as what it is, a rule that was not met;
its bound is never moved to fit a result. Rules about what a pack does not claim are shown, and judge nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.domain.errors import SettingsError

PASS, FAIL = "pass", "fail"
INTEGRITY_ONLY = "integrity only"
"""What is judged of a pack that does not claim to be validated."""
SEE_SPEEDS = "see speed.json"
"""What a report shows for a measured time, so that two runs make one report."""
AT = ", at "
"""Between a rule's name and the precision, not the first one, of which it is asked."""
SMALLEST = 1e-4
"""Figures nearer to nought are not written with a power of ten."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One demand: `measured` is at least (with `at_most` at most, with `beyond` above) `bound`; NaN never passes.

    Attributes:
        waived: It may be broken: the maker answers for it.
        waivable: Whether anybody could.
        claimed: Whether the pack claims what the rule is about; else it is shown and judges nothing.
        timed: `measured` came off a clock, and is not shown in the report.
    """

    name: str
    measured: float
    bound: float
    at_most: bool = False
    waived: bool = False
    beyond: bool = False
    waivable: bool = True
    claimed: bool = True
    timed: bool = False

    @property
    def passed(self) -> bool:
        """Whether the demand is met."""
        if self.at_most:
            return self.measured <= self.bound
        return self.measured > self.bound if self.beyond else self.measured >= self.bound

    @property
    def stops(self) -> bool:
        """Whether the rule keeps the pack from being made."""
        return self.claimed and not self.waived and not self.passed

    @property
    def figure(self) -> str:
        """What was measured, to be read."""
        return f"{self.measured:.4f}" if 0 < abs(self.measured) < SMALLEST else f"{self.measured:.4g}"

    def row(self, *, timed: bool = False) -> list[str]:
        """The rule as a row of the report: name, bound, measured (a time only with `timed`), passed."""
        sign = "≤" if self.at_most else ">" if self.beyond else "≥"
        measured = SEE_SPEEDS if self.timed and not timed else self.figure
        return [self.name, f"{sign} {self.bound:g}", measured, self._answer()]

    def _answer(self) -> str:
        if not self.claimed:
            return "met, not claimed" if self.passed else "not met, not claimed"
        return "yes" if self.passed else "no: waived" if self.waived else "no"


def verdict(rules: Sequence[Rule]) -> str:
    """`pass` when every rule that is claimed is met or waived, else `fail`."""
    return FAIL if any(rule.stops for rule in rules) else PASS


def with_waivers(rules: Sequence[Rule], names: Sequence[str]) -> list[Rule]:
    """The rules, those of these names waived.

    A rule of one more precision that serves may be named though it does not serve this time: the clock decides that.

    Raises:
        SettingsError: A name is no rule's, so that it would waive nothing; or of a rule that nobody may waive.
    """
    known = {rule.name for rule in rules}
    unknown = {name for name in names if name not in known and name.rsplit(AT, 1)[0] not in known}
    if unknown:
        raise SettingsError(f"gate.waived names no rule: {', '.join(sorted(unknown))}.", "Correct the recipe.")
    fixed = [rule.name for rule in rules if rule.name in names and not rule.waivable]
    if fixed:
        raise SettingsError(
            f"gate.waived names a rule that nobody may waive: {', '.join(sorted(fixed))}.",
            "Outputs must be finite, and a precision that gate.required_precisions names must serve: correct either.",
        )
    return [replace(rule, waived=rule.name in names) for rule in rules]


def unclaimed(rules: Sequence[Rule]) -> list[Rule]:
    """The rules as what a pack does not claim."""
    return [replace(rule, claimed=False) for rule in rules]
