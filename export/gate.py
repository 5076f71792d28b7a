"""The gate: rules with bounds from the recipe; a pack that breaks one is not made."""

from collections.abc import Sequence
from dataclasses import dataclass

PASS, FAIL = "pass", "fail"


@dataclass(frozen=True, slots=True)
class Rule:
    """One demand: `measured` must be at least (or, with `at_most`, at most) `bound`; NaN never passes."""

    name: str
    measured: float
    bound: float
    at_most: bool = False

    @property
    def passed(self) -> bool:
        """Whether the demand is met."""
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def row(self) -> list[str]:
        """The rule as a row of the report: name, bound, measured, passed."""
        sign = "≤" if self.at_most else "≥"
        return [self.name, f"{sign} {self.bound:g}", f"{self.measured:.4g}", "yes" if self.passed else "no"]


def verdict(rules: Sequence[Rule]) -> str:
    """`pass` when every rule is met, else `fail`."""
    return PASS if all(rule.passed for rule in rules) else FAIL
