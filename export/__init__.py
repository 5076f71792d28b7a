"""Insite's export: distil foundation models into one small signed pack."""
