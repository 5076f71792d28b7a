"""The protocol's service: it only translates between messages and the runner, the regions and the repository."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from appliance.domain.errors import (
    DeadlineError,
    InferenceError,
    InferenceUnavailableError,
    NotOfferedError,
    PackError,
    UnknownModelError,
)
from appliance.domain.ports import Answer
from appliance.inference.asking import Urgency, Wanted
from appliance.inference.converters import (
    arrays_from_request,
    check_outputs,
    metadata_from_description,
    response_from_outputs,
)
from appliance.inference.declared import check_declared
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from appliance.inference.question import Timing
from appliance.inference.repository import Repository
from appliance.inference.runner import PackRunner
from appliance.inference.scheduler import Ask
from appliance.inference.shared_memory import Region, SharedRegions
from appliance.inference.statistics import Duration, ModelCounts
from appliance.inference.statuses import id_of, told
from appliance.inference.wishes import FINAL, wishes_from_parameters
from appliance.telemetry import Logger

SERVER_NAME = "insite"
EXTENSIONS = ("model_repository", "system_shared_memory", "statistics", "schedule_policy")

STREAM_DEPTH = 16
"""Requests of one stream that are worked on or wait to be read by the client; no more are read from it."""
STALLED_SECONDS = 30.0
"""How long a client may leave an answer of its stream unread."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class InferenceServicer(GRPCInferenceServiceServicer):
    """Answers calls on one event loop; errors leave it as they are and become codes in `statuses`.

    Args:
        runner, regions, repository: Owned by the caller. Without a repository packs are not loaded over the protocol.
        version: The software's version, for metadata.
        stalled_seconds: How long a client may leave an answer of its stream unread.
    """

    def __init__(
        self,
        runner: PackRunner,
        regions: SharedRegions,
        repository: Repository | None,
        version: str,
        log: Logger,
        *,
        stalled_seconds: float = STALLED_SECONDS,
    ) -> None:
        self._runner = runner
        self._regions = regions
        self._repository = repository
        self._version = version
        self._log = log
        self._stalled_seconds = stalled_seconds

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:  # noqa: N802 - the protocol's name
        """Whoever can answer is live."""
        del request, context
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:  # noqa: N802 - the protocol's name
        """Ready as soon as one pack serves."""
        del request, context
        return oip.ServerReadyResponse(ready=bool(self._runner.served()))

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:  # noqa: N802 - the protocol's name
        """A model that is not known, or is loading, is not ready."""
        del context
        try:
            self._runner.describe(request.name, request.version)
        except (UnknownModelError, InferenceUnavailableError):
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Context) -> oip.ServerMetadataResponse:  # noqa: N802 - the protocol's name
        """Name, version, extensions."""
        del request, context
        return oip.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:  # noqa: N802 - the protocol's name
        """Tensors and provenance of one model."""
        del context
        return metadata_from_description(self._runner.describe(request.name, request.version))

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:  # noqa: N802 - the protocol's name
        """Run one model; a call that is cancelled leaves the queue."""
        return await self._infer(request, context.time_remaining())

    async def ModelStreamInfer(  # noqa: N802 - the protocol's name
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> None:
        """Run models one after the other; a request that fails is told so, and the stream goes on."""
        answers: asyncio.Queue[asyncio.Task[oip.ModelStreamInferResponse] | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_DEPTH)

        async def read() -> None:
            try:
                async for request in requests:
                    await room.acquire()
                    answers.put_nowait(asyncio.ensure_future(self._infer_in_stream(request)))
            finally:
                answers.put_nowait(None)

        # Apart from the first answer, so that the call can be ended before that one is read.
        await context.send_initial_metadata(())
        reader = asyncio.ensure_future(read())
        try:
            while (answer := await answers.get()) is not None:
                await self._write(await answer, context)
                room.release()
            await reader
        finally:
            reader.cancel()
            while not answers.empty():
                left = answers.get_nowait()
                if left is not None:
                    left.cancel()

    async def ModelStatistics(  # noqa: N802 - the protocol's name
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        """Counts and times of one model, or of all that are served."""
        del context
        counted = self._runner.statistics.snapshot()
        names = [request.name] if request.name else [model.name for model in self._runner.served()]
        described = [self._runner.describe(name, request.version) for name in names]
        return oip.ModelStatisticsResponse(
            model_stats=[
                _statistics(model.name, str(model.provenance.release), counted.get(model.name, ModelCounts()))
                for model in described
            ]
        )

    async def RepositoryIndex(  # noqa: N802 - the protocol's name
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        """Every model that is served and, unless only ready ones are wanted, every pack that is not."""
        del context
        models = [
            oip.RepositoryIndexResponse.ModelIndex(
                name=model.name, version=str(model.provenance.release), state="READY"
            )
            for model in self._runner.served()
        ]
        if self._repository is not None and not request.ready:
            models += [
                oip.RepositoryIndexResponse.ModelIndex(
                    name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
                )
                for entry in self._repository.index()
            ]
        return oip.RepositoryIndexResponse(models=models)

    async def RepositoryModelLoad(  # noqa: N802 - the protocol's name
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        """Verify, replay and serve an installed pack; a model in the request is refused: it is unsigned."""
        del context
        if request.parameters:
            raise NotOfferedError(
                "A model can't be loaded with parameters or files of its own: only signed packs are served.",
                "Install the pack with `insite packs install`, then load it by name.",
            )
        await asyncio.to_thread(self._packs().load, request.model_name)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802 - the protocol's name
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        """Stop serving a pack once its last request is answered."""
        del context
        await asyncio.to_thread(self._packs().unload, request.model_name)
        return oip.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(  # noqa: N802 - the protocol's name
        self, request: oip.SystemSharedMemoryStatusRequest, context: Context
    ) -> oip.SystemSharedMemoryStatusResponse:
        """The registered regions whose memory is still there."""
        del context
        return oip.SystemSharedMemoryStatusResponse(
            regions={
                each.name: oip.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=each.name, key=each.key, offset=each.offset, byte_size=each.size
                )
                for each in self._regions.status(request.name)
            }
        )

    async def SystemSharedMemoryRegister(  # noqa: N802 - the protocol's name
        self, request: oip.SystemSharedMemoryRegisterRequest, context: Context
    ) -> oip.SystemSharedMemoryRegisterResponse:
        """Make a region known under a name."""
        del context
        self._regions.sweep()
        self._regions.register(Region(request.name, request.key, request.offset, request.byte_size))
        return oip.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(  # noqa: N802 - the protocol's name
        self, request: oip.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> oip.SystemSharedMemoryUnregisterResponse:
        """Forget a region, or all."""
        del context
        self._regions.unregister(request.name)
        return oip.SystemSharedMemoryUnregisterResponse()

    async def _infer(self, request: oip.ModelInferRequest, call_seconds: float | None) -> oip.ModelInferResponse:
        wishes = wishes_from_parameters(request.parameters)
        model = self._runner.describe(request.model_name, request.model_version)
        check_declared(request, model.inputs)
        check_outputs(request, [spec.name for spec in model.outputs])
        tensors = arrays_from_request(request, self._regions)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Answer] = loop.create_future()

        def settle(answer: Answer | None, error: BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(_fulfil, done, answer, error)
            except RuntimeError:  # the loop has ended with the server: nobody waits any more
                self._log.debug("an answer came after the end", model=request.model_name)

        seconds = min((each for each in (wishes.seconds, call_seconds) if each is not None), default=None)
        wanted = Wanted(request.model_name, request.model_version, tuple(each.name for each in request.outputs))
        ask = self._runner.submit(wanted, tensors, settle, Urgency(wishes.priority, seconds))
        try:
            answer = await done
        except asyncio.CancelledError:
            self._runner.cancel(ask)
            raise
        self._log.debug(
            "answered", id=id_of(request), model=request.model_name, queue_us=int(ask.payload.timing.queue * 1e6)
        )
        response = response_from_outputs(request, answer.outputs, answer.provenance, self._regions)
        if wishes.final:
            response.parameters[FINAL].bool_param = True
        if wishes.trace:
            self._trace(request, response, ask)
        return response

    async def _infer_in_stream(self, request: oip.ModelInferRequest) -> oip.ModelStreamInferResponse:
        try:
            return oip.ModelStreamInferResponse(infer_response=await self._infer(request, None))
        except (InferenceError, PackError) as error:
            sentence = told(error)
            self._log.warning("request refused", method="ModelStreamInfer", id=id_of(request), error=sentence)
            return oip.ModelStreamInferResponse(
                error_message=sentence, infer_response=oip.ModelInferResponse(id=request.id)
            )

    async def _write(self, answer: oip.ModelStreamInferResponse, context: Context) -> None:
        # The write is left alone, not cancelled: gRPC holds its message until the client reads, and the code behind it.
        writing = asyncio.ensure_future(context.write(answer))
        done, _ = await asyncio.wait({writing}, timeout=self._stalled_seconds)
        if done:
            await writing
        else:
            raise DeadlineError(
                f"The client has read no answer of its stream for {self._stalled_seconds:g} s.",
                "Read the answers while requests are sent.",
            )

    def _packs(self) -> Repository:
        if self._repository is None:
            raise NotOfferedError("Packs are not loaded over this connection.", "Use `insite packs activate`.")
        return self._repository

    def _trace(self, request: oip.ModelInferRequest, response: oip.ModelInferResponse, ask: Ask) -> None:
        timing: Timing = ask.payload.timing
        values: dict[str, Any] = {
            "trace_queue_us": int(timing.queue * 1e6),
            "trace_encoder_us": int(timing.encoder * 1e6),
            "trace_head_us": int(timing.head * 1e6),
            "trace_batch": timing.batch,
            "trace_cache_hits": timing.cache_hits,
        }
        for name, value in values.items():
            response.parameters[name].int64_param = value
        self._log.info("trace", id=id_of(request), model=request.model_name, **values)


def _fulfil(done: "asyncio.Future[Answer]", answer: Answer | None, error: BaseException | None) -> None:
    if done.done():
        return
    if answer is not None:
        done.set_result(answer)
    else:
        done.set_exception(error or InferenceUnavailableError("There is no answer."))


def _statistics(name: str, version: str, counts: ModelCounts) -> oip.ModelStatistics:
    return oip.ModelStatistics(
        name=name,
        version=version,
        last_inference=counts.last_ms,
        inference_count=counts.images,
        execution_count=counts.batches,
        inference_stats=oip.InferStatistics(
            success=_duration(counts.success),
            fail=_duration(counts.fail),
            queue=_duration(counts.queue),
            compute_infer=_duration(counts.infer),
            cache_hit=_duration(counts.cache_hit),
            cache_miss=_duration(counts.cache_miss),
        ),
        batch_stats=[
            oip.InferBatchStatistics(batch_size=size, compute_infer=_duration(duration))
            for size, duration in sorted(counts.sizes.items())
        ],
    )


def _duration(duration: Duration) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=duration.count, ns=duration.ns)
