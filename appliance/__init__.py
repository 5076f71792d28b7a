"""Insite's appliance: a DICOM node that runs signed model packs and answers with standard DICOM objects."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""ONNX Runtime reports to its maker unless told otherwise before it is loaded, by whichever program loads it. The one
thing that happens at import in this house, because nothing may leave the site."""
