"""The Open Inference Protocol as text, and the command that makes Python of it."""
