"""Pixels: from a stored DICOM file to the picture a radiologist sees and the tensor a model reads."""
