"""Times stand in tables of their own, beside tables of the same titles that have none."""

from pathlib import Path
from typing import Any

from export.gate import Rule
from export.gate_rules import Quantised
from export.latency import Ratio
from export.speeds import (
    cpu_name,
    engine_table,
    latency_table,
    planned_engines_table,
    precision_table,
    search_table,
    speeds,
)
from export.tasks import ADULT, PAEDIATRIC

SIZES = {"int8": 3_800_000, "fp32": 13_400_000, "fp16": 6_700_000}
FIGURES = [
    Quantised("int8", {ADULT: 0.0033, PAEDIATRIC: 0.0}, 0.0001, {1: 2.09, 8: 2.13}),
    Quantised("fp16", {ADULT: 0.0012, PAEDIATRIC: 0.0}, 0.0, {}),
]
RULES = {
    "int8": [Rule("INT8 is faster", 2.09, 2.5, timed=True)],
    "fp16": [Rule("FP16 loses Dice", 0.0, 0.002, at_most=True)],
}


def ratio(median: float) -> Ratio:
    """FP32 took 6.5 ms."""
    return Ratio(median, median - 0.01, median + 0.01, 6.5, 6.5 / median)


def record(speed: float) -> dict[str, Any]:
    """A search of two settings."""
    loss = {"adult_auc": -0.0053, "paediatric_auc": 0.0, "dice": -0.0005, "shift": 0.017}
    trial = {"method": "minmax", "full_layers": ["stem"], "size_bytes": 3_762_544, "loss": loss, "aware": False}
    times = [{"median": speed, "low": speed, "high": speed}] * 2
    trials = [trial | {"speed": times, "broken": broken} for broken in ("", "Dice")]
    return {"images": 194, "trials": trials, "chosen": 0, "sensitivities": {"stem": 0.01}, "aware_steps": 0}


def test_tables_without_times_are_the_same_whatever_the_clock_said() -> None:
    """Sizes, losses and verdicts stay; every column of times is gone, and the title is one."""
    for timed, plain, other in (
        (search_table(record(1.9)), search_table(record(1.9), timed=False), search_table(record(2.2), timed=False)),
        *(
            (
                latency_table({1: ratio(one)}, SIZES, 1.4),
                latency_table({1: ratio(one)}, SIZES, 1.4, timed=False),
                latency_table({1: ratio(two)}, SIZES, 1.4, timed=False),
            )
            for one, two in ((1.9, 2.2), (1.1, 1.3))
        ),
    ):
        assert plain == other != timed
        assert plain["title"] == timed["title"]
        assert set(plain["columns"]) < set(timed["columns"])
        assert "speed.json" in plain["note"]
        assert all(len(row) == len(table["columns"]) for table in (plain, timed) for row in table["rows"])
    assert latency_table({1: ratio(1.3)}, SIZES, 1.4, timed=False)["rows"] == [[1, "≥ 1.4", "no"]]


def test_one_table_says_what_each_precision_costs() -> None:
    """Size, what it loses, whether it serves; how fast it is, where times are shown."""
    assert precision_table(FIGURES, RULES, SIZES, timed=False)["rows"] == [
        ["FP32", "13.4 MB", "", "", "", "serves"],
        ["INT8", "3.8 MB", "0.0033", "0.0000", "0.0001", "does not serve: INT8 is faster"],
        ["FP16", "6.7 MB", "0.0012", "0.0000", "0.0000", "serves"],
    ]
    timed = precision_table(FIGURES, RULES, SIZES)
    assert [row[5:7] for row in timed["rows"]] == [["", ""], ["2.09", "2.13"], ["not timed", "not timed"]]
    assert timed["columns"][5:7] == ["speed, batch 1", "speed, batch 8"]


def test_engines_are_described_with_the_times() -> None:
    """What was built, and how large it came out, is of one machine; what could be built is of the exporter."""
    built = {
        "file": "encoder.fp16.trtrtx.engine", "compute_capabilities": ["8.0", "8.6", "8.9"], "size_bytes": 8_000_000,
        "build_seconds": 0.21, "kept": True, "left_out": "",
    }  # fmt: skip
    table, planned = engine_table({"tensorrt-rtx": [built], "tensorrt": "Not here."}), planned_engines_table()
    assert planned["title"] == table["title"]
    assert table["rows"][0][2:] == ["8.0 MB", "0.2 s", "beside the pack"]
    assert table["rows"][0][:2] in planned["rows"]
    assert len(planned["rows"]) == 5


def test_the_file_says_where_it_was_measured(tmp_path: Path) -> None:
    """Schema, machine, CPU, threads; of the rules those that hang on a clock."""
    written = speeds([], [rule for rules in RULES.values() for rule in rules])
    assert written["schema"] == "insite-speeds/1"
    assert written["rules"] == [["INT8 is faster", "≥ 2.5", "2.09", "no"]]
    assert written["threads"] == 1
    described = tmp_path / "cpuinfo"
    described.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert cpu_name(described) == "Some CPU @ 2 GHz"
    assert cpu_name(tmp_path / "none")
