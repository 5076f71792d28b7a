"""Foundation models as teachers: published checkpoints from a local folder, behind one contract."""
