"""`insite inference`: opens the installed packs, replays their golden cases, and serves those that hold.

A pack that may not serve never stops the others: it is logged, and listed with its reason in `run/packs.json`.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path

from appliance.daemons.asked_daemon import tls_files
from appliance.daemons.descriptors import raise_descriptor_limit
from appliance.daemons.gpu_loss import GpuLoss
from appliance.daemons.pack_keeper import PackKeeper
from appliance.daemons.runtimes import PROGRESS_FILE, engine_store, orders_for, runtimes_of, write_progress
from appliance.domain.engine_file import EngineHost
from appliance.inference.address import Address, UnixAddress, address_from_text
from appliance.inference.engine import Runtime
from appliance.inference.engine_builds import EngineBuilds
from appliance.inference.engine_file import clear_drafts
from appliance.inference.engine_store import EngineStore
from appliance.inference.memory import give_back, use_few_arenas
from appliance.inference.metrics import metrics_text
from appliance.inference.metrics_server import OFF, MetricsServer
from appliance.inference.nvml import GpuMonitor
from appliance.inference.onnxruntime_cpu import Crowd
from appliance.inference.runner import PackRunner
from appliance.inference.scheduler import QueueLimits
from appliance.inference.server import InferenceServer
from appliance.inference.tensorrt_engine import host_of
from appliance.settings import Settings
from appliance.telemetry import logger_for

METRICS_SOCKET = Path("run", "inference-metrics.sock")


def run(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Serve until `stop` is set; `ready` is called when the socket answers.

    Without a usable pack the daemon still answers, as not ready, so that its health says so.

    Raises:
        SettingsError: The socket can't be taken.
    """
    use_few_arenas()
    log = logger_for("inference")
    raise_descriptor_limit()
    address = address_of(settings)
    limits = QueueLimits(images=settings.inference.queue_images, ageing_seconds=settings.inference.ageing_seconds)
    with ExitStack() as stack:
        monitor = stack.enter_context(GpuMonitor())
        host = host_of(monitor.state())
        store = engine_store(settings)
        # One for what serves and what is tried beside it: a trial takes no thread from the patients' images.
        make = partial(_runtimes, settings, host, store, monitor, Crowd())
        runner = stack.enter_context(PackRunner((), limits=limits, runtimes=make()))
        keeper = PackKeeper(settings, runner, lambda: PackRunner((), runtimes=make()), log)
        keeper.start(stop)
        if stop.is_set():
            return
        if not runner.served():
            log.error("no pack serves", folder=str(settings.packs_folder), refused=len(keeper.statuses()))
        server = InferenceServer(runner, address, version=version("insite"), log=log, repository=keeper)
        stack.enter_context(server)
        keeper.when_changed(partial(_changed, server))
        where = settings.inference.metrics or f"unix://{settings.state / METRICS_SOCKET}"
        if where != OFF:
            stack.enter_context(MetricsServer(where, lambda: metrics_text(runner, monitor.state())))
        loss = GpuLoss(monitor.state, keeper.move, partial(_on_device, runner))
        runner.when_failing(stack.enter_context(loss).failed)
        clear_drafts(store.built)  # the socket is ours, so no other daemon builds here
        file = settings.state / PROGRESS_FILE
        builds = stack.enter_context(EngineBuilds(lambda progress: write_progress(file, progress), keeper.refresh))
        keeper.when_serving(lambda pack: builds.order_all(orders_for(pack, store, host)))
        log.info("serving", address=_words(address), models=[each.name for each in runner.served()])
        ready()
        stop.wait()


def _changed(server: InferenceServer) -> None:
    server.say_ready()
    give_back()


def _on_device(runner: PackRunner, pack: str) -> bool:
    return runner.on_device(pack) or runner.shadow_on_device(pack)


def _runtimes(
    settings: Settings, host: EngineHost, store: EngineStore, monitor: GpuMonitor, crowd: Crowd
) -> tuple[Runtime, ...]:
    return runtimes_of(settings, host, store, monitor.state, crowd=crowd)


def address_of(settings: Settings) -> Address:
    """Where this appliance's daemon listens.

    Raises:
        SettingsError: `inference.listen` is no address, or a port without TLS.
    """
    section = settings.inference
    if not section.listen:
        return UnixAddress(settings.inference_socket)
    return address_from_text(section.listen, tls_files(section, section.tls_client_authority))


def _words(address: Address) -> str:
    return str(address.path) if isinstance(address, UnixAddress) else f"{address.host}:{address.port}"
