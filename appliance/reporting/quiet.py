"""The libraries' remarks on odd source values are expected: sources come from many vendors, results are checked."""

import warnings

LIBRARIES = r"(pydicom|highdicom)(\.|$)"


def silence_libraries() -> None:
    """Silence warnings of the DICOM libraries.

    The filter is narrow and stays: swapping the process's filters for a while is not safe beside other threads.
    """
    if not any(getattr(module, "pattern", "") == LIBRARIES for _, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=LIBRARIES)
