"""The DICOM network: associations in and out."""
