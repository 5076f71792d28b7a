"""What must be shown before a pack may speak: activation against golden cases."""
