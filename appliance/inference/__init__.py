"""Engines, and the Open Inference Protocol that serves them."""
