"""`insite bench inference`: the daemon beside in-process ONNX Runtime and MLServer, as ratios of one run.

Every ratio is the median over rounds; in each round both sides run one after the other on the same machine, so that
whatever else the machine does slows both. Absolute figures are in `raw`, and mean nothing elsewhere.
"""

import os
import resource
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from appliance.daemons.bench_background import LOAD, busy
from appliance.daemons.bench_inference_table import GOALS, WITHOUT_GOAL
from appliance.daemons.bench_peers import PEERS, Running, child_json, our_daemon, peers, trusted
from appliance.domain.errors import PackError
from appliance.domain.manifest import ALL, EMBEDDING, PackManifest, VerifiedPack
from appliance.inference.cpus import run_threads, usable_cpus
from appliance.inference.scheduler import Priority
from appliance.packs.open import installed_packs
from appliance.settings import Settings

IN_PROCESS = "appliance.inference.bench_in_process"
BATCHES = (1, 2, 4, 8)
WAYS: Mapping[str, Mapping[str, bool]] = {
    "stream": {"shared": True, "stream": True},
    "shared": {"shared": True},
    "inline": {},
}
"""How requests reach the daemon: in a stream of each client or as calls, with pixels in shared memory or inline."""
OUTLASTS = 60.0
"""Seconds that background work may go on after what is measured beside it; it is ended then."""
CLIENTS_A_PLACE = 3
"""Clients of the crowd for each image that may wait."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: rounds, seconds of each side in a round, clients with their requests, and the crowd."""

    rounds: int = 5
    seconds: float = 4.0
    clients: int = 16
    requests_each: int = 25
    crowd: int = 200
    crowd_seconds: float = 60.0


SHORT = Effort(rounds=2, seconds=1.0, clients=8, requests_each=8, crowd=50, crowd_seconds=3.0)
"""For CI: shows that everything runs; its figures are too noisy to judge by."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is measured: the encoder that serves, and the pack's heads."""

    manifest: PackManifest
    graph: Path
    heads: tuple[Path, ...]
    threads: int


@dataclass(frozen=True, slots=True)
class _Run:
    """One measurement under way: what is measured, how long, and what was found so far."""

    daemon: Running
    subject: _Subject
    effort: Effort
    best: dict[str, Any]
    ratios: dict[str, float | None]
    raw: dict[str, Any]


def bench_inference(settings: Settings, effort: Effort, peer: Path | None) -> dict[str, Any]:
    """Measure everything.

    Args:
        peer: The Python of an environment with MLServer and ONNX Runtime; None leaves that ratio out.

    Returns:
        `{"ratios": {…}, "raw": {…}}`; a ratio that was not measured is None, and `raw.left_out` says why.

    Raises:
        PackError: There is no pack to measure.
        InsiteError: A server did not come up.
    """
    pack = first_pack(settings)
    raw: dict[str, Any] = {"machine": {"cpus": usable_cpus(), "load_before": os.getloadavg()[0]}, "left_out": {}}
    ratios: dict[str, float | None] = dict.fromkeys((*GOALS, *WITHOUT_GOAL))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="insite-bench-")))
        state = folder / "state"
        state.mkdir()
        daemon = stack.enter_context(our_daemon(settings.packs_folder, state, trusted(settings)))
        subject = _subject(pack, daemon, settings)
        raw["subject"] = {"pack": pack.manifest.digest, "encoder": subject.graph.name, "threads": subject.threads}
        run = _Run(daemon, subject, effort, _best_in_process(subject, raw), ratios, raw)
        with peers(peer, subject.graph, subject.threads, folder) as others:
            if not others:
                raw["left_out"] |= dict.fromkeys(
                    ratios_of_peers(), "no environment with MLServer: `make bench` makes one"
                )
            _throughput(run, others)
            _processor_time(run, others)
        _overhead(run)
        _urgent(run)
        _heads(run)
        _crowd(run, folder / "crowd", settings)
    raw["machine"]["load_after"] = os.getloadavg()[0]
    return {"ratios": ratios, "raw": raw}


def first_pack(settings: Settings) -> VerifiedPack:
    """The pack that is measured: the first of the installed ones, by name.

    Raises:
        PackError: There is none.
    """
    found = installed_packs(settings.packs_folder, settings.packs.trusted_keys, allow_unvalidated=True)
    packs = [each for each in found if isinstance(each, VerifiedPack)]
    if not packs:
        raise PackError(f"There is no pack in {settings.packs_folder} to measure.", "Name a folder with --packs.")
    return packs[0]


def _subject(pack: VerifiedPack, daemon: Running, settings: Settings) -> _Subject:
    precision = _precision(daemon, pack.manifest)
    variant = next(each for each in pack.manifest.variants if each.precision == precision)
    heads = tuple(pack.folder / task.head for task in pack.manifest.tasks)
    return _Subject(pack.manifest, pack.folder / variant.file, heads, settings.inference.threads or run_threads())


def _precision(daemon: Running, manifest: PackManifest) -> str:
    from appliance.inference.client import OipClient  # noqa: PLC0415 - one question

    with OipClient(daemon.target, 10) as client:
        return next(each.provenance.precision for each in client.served() if each.provenance.pack == manifest.name)


def _best_in_process(subject: _Subject, raw: dict[str, Any]) -> dict[str, Any]:
    """The batch and threads at which one caller of `session.run` gets most done."""
    sweep = {"threads": sorted({1, subject.threads}), "batches": BATCHES, "spins": [True, False], "seconds": 0.7}
    table = child_json(IN_PROCESS, _in_process(subject) | sweep)
    keys = ("threads", "batch", "spin", "images_per_second")
    raw["in_process_settings"] = [{key: each[key] for key in keys} for each in table]
    best: dict[str, Any] = max(table, key=lambda each: float(each["images_per_second"]))
    return {"threads": [best["threads"]], "batches": [best["batch"]], "spins": [best["spin"]]}


def _throughput(run: _Run, others: Mapping[str, Running]) -> None:
    many = {"clients": run.effort.clients, "seconds": run.effort.seconds}
    side_by_side = {"threads": [1], "batches": [1], "spins": [False], "callers": run.subject.threads}
    rounds: list[dict[str, float]] = []
    for _ in range(run.effort.rounds):
        alone = _alone(run, **run.best, seconds=run.effort.seconds)
        each = {"in_process": float(alone["images_per_second"])}
        each |= {way: _rate(_load(run, **many, **how)) for way, how in WAYS.items()}
        beside = _alone(run, **side_by_side, seconds=run.effort.seconds)
        each["in_process_side_by_side"] = float(beside["images_per_second"])
        for name, other in others.items():
            each[name] = _rate(_load(run, **many, target=other.target, models=("encoder",)))
        rounds.append(each)
    run.raw["throughput"] = rounds
    for ratio, ours, theirs in (
        ("throughput_vs_in_process", "stream", "in_process"),
        ("throughput_vs_in_process_calls", "shared", "in_process"),
        ("throughput_vs_in_process_inline", "inline", "in_process"),
        ("throughput_vs_in_process_side_by_side", "stream", "in_process_side_by_side"),
        *((f"throughput_vs_{name}", "stream", name) for name in others),
        *((f"throughput_vs_{name}_inline", "inline", name) for name in others),
    ):
        run.ratios[ratio] = _median(each[ours] / each[theirs] for each in rounds)


def _processor_time(run: _Run, others: Mapping[str, Running]) -> None:
    """Milliseconds of processor time that one request costs: hardly moved by what else the machine does.

    Both sides of a server are counted, its own and the clients'; the clients' start is taken off by a short run.
    """
    alone = _alone(run, threads=[run.subject.threads], batches=[1], spins=[False], seconds=run.effort.seconds)
    found: dict[str, Any] = {"in_process": alone["processor_ms"]}
    for way, how in WAYS.items():
        found[way] = _processor_ms(run.daemon, _order(run, clients=run.effort.clients, **how), run.effort)
    for name, other in others.items():
        foreign = _order(run, clients=run.effort.clients, target=other.target, models=("encoder",))
        found[name] = _processor_ms(other, foreign, run.effort)
    run.raw["processor_ms_per_request"] = found


def _processor_ms(server: Running, order: dict[str, Any], effort: Effort) -> dict[str, float]:
    costs = []
    for count in (1, effort.requests_each):
        before, clients = _processor_seconds(server), resource.getrusage(resource.RUSAGE_CHILDREN)
        answers = int(child_json(LOAD, order | {"count": count})["answers"])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - clients.ru_utime - clients.ru_stime
        costs.append((_processor_seconds(server) - before, used, answers))
    (server_short, clients_short, few), (server_long, clients_long, many) = costs
    return {
        "server": (server_long - server_short) / (many - few) * 1000,
        "clients": (clients_long - clients_short) / (many - few) * 1000,
    }


def _processor_seconds(server: Running) -> float:
    """Of a server and the processes that it started."""
    process = psutil.Process(server.process.pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def _overhead(run: _Run) -> None:
    """One request at a time, against in-process runs with as many threads, spinning or not, whichever is quicker."""
    seconds = run.effort.seconds / 2
    rounds = []
    for _ in range(run.effort.rounds):
        alone = [
            statistics.median(
                _alone(run, threads=[run.subject.threads], batches=[1], spins=[spin], seconds=seconds)["milliseconds"]
            )
            for spin in (True, False)
        ]
        served = _load(run, clients=1, seconds=seconds, shared=True)
        rounds.append({"in_process_ms": min(alone), "served_ms": statistics.median(served["milliseconds"])})
    run.raw["overhead"] = rounds
    run.ratios["overhead_ms_batch1"] = _median(each["served_ms"] - each["in_process_ms"] for each in rounds)


def _urgent(run: _Run) -> None:
    """One STAT client, alone and beside clients that keep the box busy with background work."""
    seconds = run.effort.seconds * 2
    urgent = {"clients": 1, "seconds": seconds, "shared": True, "priority": int(Priority.STAT), "pause": 0.01}
    background = {"seconds": seconds + OUTLASTS, "shared": True, "priority": int(Priority.BACKGROUND)}
    rounds = []
    for _ in range(run.effort.rounds):
        idle = _load(run, **urgent)
        with busy(run.daemon, _order(run, **background, clients=run.effort.clients)) as answered:
            before = answered()
            loaded = _load(run, **urgent)
            beside = answered() - before - int(loaded["answers"])
        rounds.append(
            {
                "idle_p99_ms": _percentile(idle["milliseconds"], 99),
                "loaded_p99_ms": _percentile(loaded["milliseconds"], 99),
                "idle_p50_ms": _percentile(idle["milliseconds"], 50),
                "loaded_p50_ms": _percentile(loaded["milliseconds"], 50),
                "loaded_count": len(loaded["milliseconds"]),
                "background_answers": beside,
            }
        )
    run.raw["urgent"] = rounds
    run.ratios["stat_p99_loaded_vs_idle"] = _median(each["loaded_p99_ms"] / each["idle_p99_ms"] for each in rounds)


def _heads(run: _Run) -> None:
    """All tasks of the pack on each image in one request, against an encoder of its own for every task.

    The separate models are served by the same daemon: each task is asked about images that nobody asked about before.
    Beside them the same in process, without any server. Many sessions whose threads spin hold each other up, where one
    alone is fastest so: that reference takes the better.
    """
    manifest = run.subject.manifest
    each_task = tuple(manifest.model_name(task.name) for task in manifest.tasks)
    heads = [str(head) for head in run.subject.heads]
    many = {"clients": run.effort.clients, "shared": True}
    ways: dict[str, dict[str, Any]] = {
        "one_call": {**many, "models": (manifest.model_name(ALL),)},
        "a_call_each": {**many, "models": each_task},
        "separate_models": {**many, "models": each_task, "in_turn": True},
    }
    seconds = run.effort.seconds / 2
    rounds = []
    for _ in range(run.effort.rounds):
        alone = max(
            float(_alone(run, **run.best | {"spins": [spin]}, heads=heads, seconds=seconds)["images_per_second"])
            for spin in (True, False)
        )
        served = {way: _rate(_load(run, **load, seconds=run.effort.seconds)) for way, load in ways.items()}
        served["separate_models"] /= len(each_task)
        rounds.append({"separate_models_in_process": alone, **served})
    one_thread = {"threads": [1], "batches": [1], "spins": [False], "heads": heads}
    processor = {
        "separate_models_in_process": _alone(run, **one_thread, seconds=run.effort.seconds)["processor_ms"],
        **{way: _processor_ms(run.daemon, _order(run, **load), run.effort) for way, load in ways.items()},
    }
    run.raw["heads"] = {"tasks": len(each_task), "rounds": rounds, "processor_ms_per_answer": processor}
    for ratio, theirs in (
        ("heads_vs_models", "separate_models"),
        ("heads_vs_models_in_process", "separate_models_in_process"),
    ):
        run.ratios[ratio] = _median(each["one_call"] / each[theirs] for each in rounds)


def _crowd(run: _Run, folder: Path, settings: Settings) -> None:
    """Three times as many clients as may wait: each is answered, or told when to come again.

    The daemon of this measurement has a queue to match. If nobody had to be refused, nothing was shown: no figure then.
    """
    places = max(1, run.effort.crowd // CLIENTS_A_PLACE)
    folder.mkdir()
    environment = {**trusted(settings), "INSITE_INFERENCE__QUEUE_IMAGES": str(places)}
    with our_daemon(settings.packs_folder, folder, environment) as daemon:
        found = _load(run, clients=run.effort.crowd, seconds=run.effort.crowd_seconds, target=daemon.target)
        alive = daemon.process.poll() is None
    refused = found["failures"].get("RESOURCE_EXHAUSTED", 0)
    run.raw["crowd"] = {
        "clients": run.effort.crowd,
        "queue_images": places,
        "answers": found["answers"],
        "refused_with_hint": refused - found["without_hint"],
        "without_hint": found["without_hint"],
        "failures": found["failures"],
        "alive": alive,
    }
    if not refused:
        run.raw["left_out"]["errors_of_many_clients"] = "the queue never filled: nobody had to be refused"
        return
    others = sum(found["failures"].values()) - refused
    run.ratios["errors_of_many_clients"] = float(others + found["without_hint"])


def ratios_of_peers() -> Sequence[str]:
    """The ratios that need another server."""
    return [f"throughput_vs_{name}{way}" for name in PEERS for way in ("", "_inline")]


def _load(run: _Run, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = child_json(LOAD, _order(run, **changes))
    return found


def _order(run: _Run, **changes: Any) -> dict[str, Any]:
    spec = run.subject.manifest.input
    return {
        "target": run.daemon.target,
        "models": (run.subject.manifest.model_name(EMBEDDING),),
        "input_name": spec.name,
        "rows": spec.rows,
        "columns": spec.columns,
        **changes,
    }


def _alone(run: _Run, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = child_json(IN_PROCESS, _in_process(run.subject) | changes)[0]
    return found


def _in_process(subject: _Subject) -> dict[str, Any]:
    spec = subject.manifest.input
    return {
        "graph": str(subject.graph),
        "input": spec.name,
        "outputs": ["embedding"],
        "rows": spec.rows,
        "columns": spec.columns,
    }


def _rate(found: Mapping[str, Any]) -> float:
    if found["failures"]:
        raise PackError(f"Requests failed while measuring: {found['failures']}.", "Read the daemon's log.")
    return float(found["answers"]) / float(found["seconds"])


def _median(values: Iterator[float]) -> float:
    return statistics.median(values)


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
