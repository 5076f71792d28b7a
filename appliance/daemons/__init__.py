"""Composition: each daemon reads settings, builds its objects, wires them and starts them."""
