"""The library's remarks on odd source values are expected: sources come from many vendors, results are checked."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of the DICOM libraries while results are made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
