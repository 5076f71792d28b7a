"""A new task on a frozen base: labels in, one small head out, joined to the base under a new signature."""
