"""The gate refuses what does not carry the claim: each bound is shown to bite."""

import dataclasses
from pathlib import Path

import pytest

from appliance.domain.errors import SettingsError
from export.gate import FAIL, PASS, Rule, unclaimed, verdict, with_waivers
from export.gate_rules import Accuracy, Quantised, Shortcut, Subgroup, accuracy_rules, quantised_rules, shortcut_rules
from export.metrics import Interval
from export.recipe import GateSection, recipe_from_toml
from tests.export.pure_shortcuts import audited, same_numbers, unlisted_marker

GROUPS = (Subgroup("all", 99, 0.91, 0.91), Subgroup("sex F", 60, 0.92, 0.92), Subgroup("sex M", 60, 0.90, 0.91))
GOOD = Accuracy(Interval(0.91, 0.85, 0.96), 0.06, 0.995, 0.95, 0.90, 0.91, 0.95, 1.0, 0.97, GROUPS)
INT8 = Quantised("int8", {"adult-triage": 0.002, "paediatric-pneumonia": 0.0}, 0.0005, {1: 1.9, 8: 2.2})
SEEN = Shortcut("adult-triage", 0.80, 0.65, 0.97, 0.03, 1.4, 1.2, 1.5)


@pytest.fixture(scope="module")
def gate(repository: Path) -> GateSection:
    """The bounds of the shipped pack."""
    return recipe_from_toml(repository / "engines" / "chest-xray" / "recipe.toml").gate


def broken(rules: list[Rule]) -> str:
    """Names of the rules that are not met."""
    assert verdict(rules) == FAIL
    return "; ".join(rule.name for rule in rules if not rule.passed)


def test_good_figures_pass(gate: GateSection) -> None:
    """Figures within every bound pass."""
    rules = [*accuracy_rules(GOOD, gate), *quantised_rules(INT8, gate), *shortcut_rules(SEEN, gate)]
    assert verdict(rules) == PASS


def test_a_waived_rule_stays_one_that_is_not_met() -> None:
    """A waiver lets the pack pass and shows the rule as not met, with its bound; one that names no rule is refused."""
    rules = [Rule("good", 0.9, 0.8), Rule("poor", 0.836, 0.9)]
    assert verdict(rules) == FAIL
    waived = with_waivers(rules, ["poor"])
    assert verdict(waived) == PASS
    assert [rule.row() for rule in waived] == [
        ["good", "≥ 0.8", "0.9", "yes"],
        ["poor", "≥ 0.9", "0.836", "no: waived"],
    ]
    assert verdict([*waived, Rule("worse", 0.1, 0.2)]) == FAIL
    with pytest.raises(SettingsError, match="names no rule: none"):
        with_waivers(rules, ["none"])
    assert with_waivers(rules, ["good, at FP32"]) == rules
    with pytest.raises(SettingsError, match="nobody may waive: whole"):
        with_waivers([*rules, Rule("whole", 0.9, 1.0, waivable=False)], ["whole"])


def test_a_rule_that_is_not_claimed_judges_nothing() -> None:
    """Met or not, it is shown as what the pack does not claim."""
    rules = unclaimed([Rule("good", 0.9, 0.8), Rule("poor", 0.1, 0.9)])
    assert verdict(rules) == PASS
    assert [rule.row()[3] for rule in rules] == ["met, not claimed", "not met, not claimed"]


def test_figures_are_written_to_be_read() -> None:
    """No power of ten for what is nearly nought, and no measured time where two runs must agree."""
    assert Rule("a", 7.688e-06, 0.002, at_most=True).row()[2] == "0.0000"
    assert Rule("a", -3e-05, 0.002, at_most=True).row()[2] == "-0.0000"
    assert Rule("a", 0.00010219, 0.002, at_most=True).row()[2] == "0.0001022"
    assert Rule("a", 0.0, 0.002, at_most=True).row()[2] == "0"
    timed = Rule("fast", 2.091, 1.4, timed=True)
    assert timed.row() == ["fast", "≥ 1.4", "see speed.json", "yes"]
    assert timed.row(timed=True) == ["fast", "≥ 1.4", "2.091", "yes"]


def test_an_int8_encoder_that_is_worse_does_not_serve(gate: GateSection) -> None:
    """INT8 that loses too much AUC, or Dice, is refused by the task's name."""
    worse = dataclasses.replace(INT8, auc_losses={"adult-triage": 0.024, "paediatric-pneumonia": 0.0})
    assert broken(quantised_rules(worse, gate)) == "INT8 loses AUC, adult-triage"
    assert broken(quantised_rules(dataclasses.replace(INT8, dice_loss=0.01), gate)) == "INT8 loses Dice"


def test_an_int8_encoder_that_is_slower_does_not_serve(gate: GateSection) -> None:
    """One batch size at which INT8 is not faster is enough to refuse it."""
    slower = dataclasses.replace(INT8, speed={1: 1.8, 8: 0.9})
    assert broken(quantised_rules(slower, gate)) == "INT8 is faster than FP32, by the slowest batch"


def test_a_precision_that_was_not_timed_is_judged_by_its_accuracy(gate: GateSection) -> None:
    """FP16 is not timed on a CPU, and has no rule about speed."""
    names = [rule.name for rule in quantised_rules(Quantised("fp16", {"adult-triage": 0.0}, 0.0, {}), gate)]
    assert names == ["FP16 loses AUC, adult-triage", "FP16 loses Dice"]


def test_a_subgroup_below_its_bound_refuses_the_pack(gate: GateSection) -> None:
    """A pack that is good on the whole and bad for men is refused, by the group's name and by the gap."""
    groups = (*GROUPS[:2], Subgroup("sex M", 60, 0.70, 0.90))
    found = broken(accuracy_rules(dataclasses.replace(GOOD, subgroups=groups), gate))
    assert found == "AUC of adults, sex M; share of the teachers', sex M; gap between the sexes, adults"


def test_a_small_subgroup_is_shown_but_not_judged(gate: GateSection) -> None:
    """Below the recipe's number of images a group's AUC is noise, and has no rule of its own."""
    groups = (*GROUPS, Subgroup("age 60 and over", 27, 0.5, 0.9))
    names = [rule.name for rule in accuracy_rules(dataclasses.replace(GOOD, subgroups=groups), gate)]
    assert not any("age" in name for name in names)


def test_a_model_that_is_no_better_than_the_trivial_one_is_refused(gate: GateSection) -> None:
    """A model that ranks like images no better than file size and brightness do is refused."""
    found = broken(shortcut_rules(dataclasses.replace(SEEN, matched=0.66, ahead=0.55), gate))
    assert found.count("adult-triage") == 2
    assert "thirds of the trivial score" in found


def test_a_model_that_looks_beside_the_lungs_is_refused(gate: GateSection) -> None:
    """Influence that lies outside the lungs, or an AUC that a crop takes away, is refused."""
    assert "influence of lung" in broken(shortcut_rules(dataclasses.replace(SEEN, lung_attribution=0.6), gate))
    assert "worst disturbance" in broken(shortcut_rules(dataclasses.replace(SEEN, disturbed_loss=0.2), gate))


def test_a_model_that_looks_at_lungs_no_more_than_its_untrained_head_is_refused(gate: GateSection) -> None:
    """Above the bound is not enough where the encoder alone gets as far; the highest untrained head is no bound."""
    for reached in (1.24, 1.4):
        rules = shortcut_rules(dataclasses.replace(SEEN, control_mean=reached, lung_attribution=1.24), gate)
        assert broken(rules) == "influence of lung beyond the mean of untrained heads, adult-triage"
    assert verdict(shortcut_rules(dataclasses.replace(SEEN, lung_attribution=1.3), gate)) == PASS
    assert Rule("a", 0.0, 0.0, beyond=True).row() == ["a", "> 0", "0", "no"]


@pytest.mark.slow
def test_a_model_that_learned_the_trivial_numbers_is_refused() -> None:
    """A simulated model of the audit's own numbers passes on no simulated hospital, even at the looser bound."""
    assert not any(audited(same_numbers, seed).passes(0.03, 0.8) for seed in range(6))


@pytest.mark.slow
def test_a_shortcut_without_a_number_is_not_seen() -> None:
    """A simulated model of a marker that the audit has no number for mostly passes: the manual says so."""
    found = [audited(unlisted_marker, seed).passes(0.03, 0.8) for seed in range(6)]
    assert sum(found) > len(found) / 2


def test_what_is_not_a_number_never_passes() -> None:
    """NaN meets no bound, from neither side."""
    nan = float("nan")
    assert verdict([Rule("a", nan, 0.0)]) == verdict([Rule("b", nan, 0.0, at_most=True)]) == FAIL
