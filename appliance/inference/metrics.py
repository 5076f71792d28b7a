"""Metrics in Prometheus's text form, with the names that Triton uses, so that its dashboards and alerts fit.

Written by hand: Triton's counters have no `_total` at their end, which the client library would add.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from appliance.domain.gpu import GpuState
from appliance.inference.runner import PackRunner
from appliance.inference.shadow import Differences
from appliance.inference.statistics import ModelCounts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_US = 1000

Sample = tuple[Mapping[str, str], float]


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    kind: str
    text: str
    samples: tuple[Sample, ...]


_PER_MODEL: tuple[tuple[str, str, Callable[[ModelCounts], float]], ...] = (
    ("nv_inference_request_success", "Requests answered", lambda each: each.success.count),
    ("nv_inference_request_failure", "Requests that failed", lambda each: each.fail.count),
    ("nv_inference_count", "Images answered", lambda each: each.images),
    ("nv_inference_exec_count", "Batches run", lambda each: each.batches),
    ("nv_inference_request_duration_us", "Time of requests in all", lambda each: each.success.ns // _US),
    ("nv_inference_queue_duration_us", "Time in the queue", lambda each: each.queue.ns // _US),
    ("nv_inference_compute_infer_duration_us", "Time of encoder and head", lambda each: each.infer.ns // _US),
    ("nv_cache_num_hits_per_model", "Images whose features were known", lambda each: each.cache_hit.count),
    ("nv_cache_num_misses_per_model", "Images that the encoder saw", lambda each: each.cache_miss.count),
)


def metrics_text(runner: PackRunner, gpu: GpuState | None) -> str:
    """Everything there is to say now."""
    return "".join(_lines([*_of_models(runner), *_of_daemon(runner), *(_of_gpu(gpu) if gpu else ())]))


def _of_models(runner: PackRunner) -> Iterator[_Family]:
    counted = runner.statistics.snapshot()
    versions = {model.name: str(model.provenance.release) for model in runner.served()}
    for name, text, value in _PER_MODEL:
        samples = tuple(
            ({"model": model, "version": versions.get(model, "")}, float(value(counts)))
            for model, counts in sorted(counted.items())
        )
        yield _Family(name, "counter", text, samples)


def _of_daemon(runner: PackRunner) -> Iterator[_Family]:
    yield _Family("nv_inference_pending_request_count", "gauge", "Images that wait", (({}, runner.waiting_images),))
    packs = {model.provenance for model in runner.served()}
    yield _Family(
        "insite_pack_info",
        "gauge",
        "The packs that serve",
        tuple(
            (
                {
                    "pack": each.pack,
                    "release": str(each.release),
                    "digest": each.pack_digest,
                    "precision": each.precision,
                },
                1.0,
            )
            for each in sorted(packs, key=lambda each: each.pack)
        ),
    )
    shadows = sorted(runner.differences.snapshot().items())
    families: tuple[tuple[str, str, str, Callable[[Differences], float]], ...] = (
        ("insite_shadow_pairs", "counter", "Answers compared with a shadow's", lambda each: each.pairs),
        ("insite_shadow_failures", "counter", "Questions that a shadow did not answer", lambda each: each.failures),
        ("insite_shadow_largest_difference", "gauge", "Largest difference of an output", lambda each: each.largest),
    )
    for name, kind, text, value in families:
        yield _Family(name, kind, text, tuple(({"model": model}, float(value(found))) for model, found in shadows))


def _of_gpu(gpu: GpuState) -> Iterator[_Family]:
    label = {"gpu_uuid": gpu.uuid}
    values: tuple[tuple[str, str, float | None], ...] = (
        ("nv_gpu_utilization", "Part of the time in which a kernel ran", gpu.utilisation),
        ("nv_gpu_memory_total_bytes", "Memory", float(gpu.total_bytes)),
        ("nv_gpu_memory_used_bytes", "Memory in use", float(gpu.total_bytes - gpu.free_bytes)),
        ("nv_gpu_power_usage", "Watts", gpu.power_watts),
        ("insite_gpu_temperature_celsius", "Temperature", gpu.temperature),
        ("insite_gpu_throttled", "Whether its clocks are held down", float(bool(gpu.throttled))),
        ("insite_gpu_ecc_errors", "Uncorrected memory errors", gpu.ecc_errors),
        ("insite_gpu_xid_errors", "Critical errors that the driver reported", float(len(gpu.xid_errors))),
    )
    for name, text, value in values:
        if value is not None:
            yield _Family(name, "gauge", text, ((label, float(value)),))


def _lines(families: Iterable[_Family]) -> Iterator[str]:
    for family in families:
        yield f"# HELP {family.name} {family.text}\n# TYPE {family.name} {family.kind}\n"
        for labels, value in family.samples:
            inside = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            number = int(value) if float(value).is_integer() else float(value)
            yield f"{family.name}{{{inside}}} {number}\n" if inside else f"{family.name} {number}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
