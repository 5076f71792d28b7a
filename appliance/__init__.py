"""Insite's appliance: a DICOM node that runs signed model packs and answers with standard DICOM objects."""
