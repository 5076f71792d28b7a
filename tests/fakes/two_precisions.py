"""A pack in two precisions whose graphs are the same, so that which of them serves is decided by all else."""

import dataclasses

from safetensors.numpy import load_file, save_file

from appliance.domain.manifest import EncoderVariant, OperatingPoint
from tests.fakes.tiny_pack import TinyPack, rewritten


def two_precisions(pack: TinyPack) -> TinyPack:
    """The pack with an INT8 variant that is preferred; its graph is the same, only its name differs."""
    (pack.folder / "encoder.int8.onnx").write_bytes((pack.folder / "encoder.onnx").read_bytes())
    golden = pack.folder / "golden" / "cases.safetensors"
    arrays = load_file(golden)
    int8 = {name.replace("fp32/", "int8/"): array for name, array in arrays.items() if name.startswith("fp32/")}
    save_file(arrays | int8, golden)
    variants = (
        EncoderVariant("int8", "encoder.int8.onnx", ("onnxruntime-cpu",)),
        EncoderVariant("fp32", "encoder.onnx", ("onnxruntime-cpu",)),
    )
    tasks = tuple(
        dataclasses.replace(
            task,
            operating_points=(
                *task.operating_points,
                OperatingPoint("int8", 0.5, task.operating_points[0].max_distance, "Synthetic."),
            ),
        )
        for task in pack.manifest.tasks
    )
    return rewritten(pack, variants=variants, tasks=tasks)
