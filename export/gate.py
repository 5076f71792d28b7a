"""The gate: rules with bounds from the recipe; a pack that breaks one is not made.

A rule may be waived by name in the recipe. It then stands in report and card as what it is, a rule that was not met;
its bound is never moved to fit a result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.domain.errors import SettingsError

PASS, FAIL = "pass", "fail"


@dataclass(frozen=True, slots=True)
class Rule:
    """One demand: `measured` is at least (with `at_most` at most, with `beyond` above) `bound`; NaN never passes."""

    name: str
    measured: float
    bound: float
    at_most: bool = False
    waived: bool = False
    beyond: bool = False

    @property
    def passed(self) -> bool:
        """Whether the demand is met."""
        if self.at_most:
            return self.measured <= self.bound
        return self.measured > self.bound if self.beyond else self.measured >= self.bound

    def row(self) -> list[str]:
        """The rule as a row of the report: name, bound, measured, passed."""
        sign = "≤" if self.at_most else ">" if self.beyond else "≥"
        passed = "yes" if self.passed else "no: waived" if self.waived else "no"
        return [self.name, f"{sign} {self.bound:g}", f"{self.measured:.4g}", passed]


def verdict(rules: Sequence[Rule]) -> str:
    """`pass` when every rule is met or waived, else `fail`."""
    return PASS if all(rule.passed or rule.waived for rule in rules) else FAIL


def with_waivers(rules: Sequence[Rule], names: Sequence[str]) -> list[Rule]:
    """The rules, those of these names waived.

    Raises:
        SettingsError: A name is no rule's, so that it would waive nothing.
    """
    unknown = set(names) - {rule.name for rule in rules}
    if unknown:
        raise SettingsError(f"gate.waived names no rule: {', '.join(sorted(unknown))}.", "Correct the recipe.")
    return [replace(rule, waived=rule.name in names) for rule in rules]
