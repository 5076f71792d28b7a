"""Names of the files that one step leaves for another."""

SEARCH_RECORD = "precision-search.json"
"""The INT8 search: every trial, the layers' sensitivities, the choice."""
ENGINE_RECORD = "engines.json"
"""Which engines were built, how large they are, which are kept, and what TensorRT said."""
FOR_TENSORRT = "encoder.int8.tensorrt.onnx"
"""The INT8 encoder with signed activations and FP32 biases."""
