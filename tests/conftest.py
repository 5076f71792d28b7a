"""What every test may use: the shared data set where there is one, and a quiet environment."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("insite", deadline=None, print_blob=True)
settings.load_profile("insite")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data set of real medical images, beside the repository; required in CI, optional elsewhere."""
    folder = Path(os.environ.get("INSITE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if folder.is_dir():
        return folder
    message = f"The shared data set is not at {folder}; set INSITE_SHARED_DATA to run this test."
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def pydicom_data() -> Path:
    """The folder of real DICOM files in the PyPI package `pydicom-data`."""
    import data_store  # noqa: PLC0415 - only tests that ask for it need the package

    return Path(data_store.__file__).parent / "data"
