"""Standard DICOM results: structured report and segmentation."""
