"""Insite's export: distil foundation models into one small signed pack."""

import appliance  # noqa: F401 - it turns ONNX Runtime's telemetry off before anything here can load that library
