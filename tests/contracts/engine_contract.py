"""What every runtime must do; a runtime passes by subclassing `EngineContract` with a `runtime` fixture."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from appliance.domain.errors import InferenceUnavailableError, InvalidTensorError, PackContentError
from appliance.domain.manifest import TensorSpec
from appliance.inference.engine import Engine, Runtime
from tests.fakes.tiny_pack import EMBEDDING, FEATURES, SIDE, bright_picture, encoder_graph


class EngineContract:
    """Runs on the tiny pack's encoder, whose outputs are known by hand."""

    @pytest.fixture
    def engine(self, runtime: Runtime) -> Iterator[Engine]:
        """The encoder, loaded."""
        engine = runtime.load(encoder_graph().SerializeToString(), title="encoder.onnx", precision="fp32")
        yield engine
        engine.close()

    def test_it_says_what_it_is(self, engine: Engine, runtime: Runtime) -> None:
        """An engine names its runtime and precision, and its graph's tensors."""
        assert (engine.runtime, engine.precision) == (runtime.name, "fp32")
        assert list(engine.inputs) == [TensorSpec("image", "UINT8", (-1, 1, SIDE, SIDE))]
        assert list(engine.outputs) == [
            TensorSpec("embedding", "FP32", (-1, EMBEDDING)),
            TensorSpec("features", "FP32", (-1, *FEATURES)),
        ]

    @pytest.mark.parametrize("batch", [1, 3])
    def test_it_computes_the_graph(self, engine: Engine, batch: int) -> None:
        """Outputs come by name, FP32, one row per image."""
        outputs = engine.run({"image": np.repeat(bright_picture(), batch, axis=0)})
        assert outputs["features"].shape == (batch, *FEATURES)
        assert outputs["embedding"].dtype == np.float32
        mean = bright_picture().mean() / 255
        np.testing.assert_allclose(outputs["embedding"], np.tile(np.linspace(1, 2, EMBEDDING) * mean, (batch, 1)), 1e-4)

    @pytest.mark.parametrize(
        "inputs",
        [
            {},
            {"picture": bright_picture()},
            {"image": bright_picture(), "more": bright_picture()},
            {"image": bright_picture().astype(np.float32)},
            {"image": bright_picture()[:, :, :8]},
            {"image": bright_picture()[0]},
        ],
        ids=["nothing", "another name", "one too many", "another datatype", "another shape", "another rank"],
    )
    def test_it_refuses_what_the_graph_does_not_take(self, engine: Engine, inputs: dict[str, np.ndarray]) -> None:
        """A wrong name, datatype or shape is refused with what is expected, and the engine goes on."""
        with pytest.raises(InvalidTensorError, match=r"image UINT8 \[-1, 1, 512, 512\]"):
            engine.run(inputs)
        assert engine.run({"image": bright_picture()})

    @pytest.mark.parametrize(
        "graph",
        [
            b"",
            b"not a graph",
            encoder_graph().SerializeToString()[:-100],
            encoder_graph().SerializeToString().replace(b"image", b"im\xe1ge"),
        ],
        ids=["empty", "foreign", "truncated", "damaged name"],
    )
    def test_it_refuses_what_is_no_graph(self, runtime: Runtime, graph: bytes) -> None:
        """A file that can't be loaded is a problem of its pack, named by its title."""
        with pytest.raises(PackContentError, match=r"encoder\.onnx"):
            runtime.load(graph, title="encoder.onnx", precision="fp32")

    def test_several_threads_may_run_it(self, engine: Engine) -> None:
        """Concurrent runs give what single runs give."""
        pictures = [np.full((1, 1, SIDE, SIDE), level, np.uint8) for level in (0, 50, 100, 150)]
        alone = [engine.run({"image": picture})["embedding"] for picture in pictures]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda picture: engine.run({"image": picture})["embedding"], pictures))
        np.testing.assert_array_equal(alone, together)

    def test_a_closed_engine_says_so(self, engine: Engine) -> None:
        """After close, twice if need be, a run is answered with `unavailable`."""
        engine.close()
        engine.close()
        with pytest.raises(InferenceUnavailableError, match="closed"):
            engine.run({"image": bright_picture()})
