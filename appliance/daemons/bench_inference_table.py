"""What `insite bench inference` aims at, and the table that shows what was found beside it."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

GOALS: Mapping[str, tuple[str, float]] = {
    "throughput_vs_in_process": (">=", 0.85),
    "throughput_vs_in_process_inline": (">=", 0.78),
    "throughput_vs_mlserver": (">=", 5.0),
    "overhead_ms_batch1": ("<=", 1.5),
    "stat_p99_loaded_vs_idle": ("<=", 2.5),
    "heads_vs_models": (">=", 2.5),
    "errors_of_many_clients": ("<=", 0.0),
}
"""What the daemon is built to reach on two cores with the chest radiograph pack; the table shows them beside it.

Throughput is that of a stream of each client with pixels in shared memory, unless the name says otherwise."""

WITHOUT_GOAL = (
    "throughput_vs_in_process_calls",
    "throughput_vs_in_process_side_by_side",
    "throughput_vs_mlserver_inline",
    "throughput_vs_mlserver_tuned",
    "throughput_vs_mlserver_tuned_inline",
    "heads_vs_models_in_process",
)
"""The harder comparisons: a call for each request in place of a stream, one caller a core as the daemon's lanes are,
pixels in the message as MLServer takes them, MLServer tuned, and separate models without a server."""


def table_of(found: Mapping[str, Any]) -> Table:
    """The ratios beside what was aimed at."""
    table = Table("what", "here", "aim", "", box=None)
    for name, (sign, goal) in GOALS.items():
        value = found["ratios"][name]
        if value is None:
            table.add_row(name, "not measured", f"{sign} {goal:g}", found["raw"]["left_out"].get(name, ""))
        else:
            reached = value >= goal if sign == ">=" else value <= goal
            table.add_row(name, f"{value:.2f}", f"{sign} {goal:g}", "" if reached else "missed in this run")
    for name in WITHOUT_GOAL:
        value = found["ratios"][name]
        table.add_row(name, "not measured" if value is None else f"{value:.2f}", "", "")
    return table
