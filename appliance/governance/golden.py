"""A pack's golden cases: small inputs with the outputs that each precision gave where the pack was measured.

`golden/cases.safetensors` holds `inputs`, uint8 [K, 1, rows, columns], and `<precision>/<task>/<output>`, [K, …]:
scores and distances as FP32, masks as probabilities or as 0 and 1. `golden/cases.json` names the cases and says how far
a machine may be off.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from appliance.domain.errors import GateError
from appliance.domain.manifest import VerifiedPack

ARRAYS = "golden/cases.safetensors"
CASES = "golden/cases.json"

_REBUILD = "Build the pack again with `insite-export`."


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may be off: the largest difference of a score, the least Dice of a mask."""

    score_abs: float
    mask_dice: float


@dataclass(frozen=True, eq=False, slots=True)
class GoldenCases:
    """The cases of one pack.

    Attributes:
        names: One per case, for messages.
        inputs: uint8 [K, 1, rows, columns].
    """

    names: tuple[str, ...]
    inputs: NDArray[np.uint8]
    tolerance: Tolerance
    arrays: Mapping[str, NDArray[Any]]

    def expected(self, precision: str, task: str, output: str) -> NDArray[Any]:
        """What a precision gave for all cases, [K, …].

        Raises:
            GateError: It was not recorded.
        """
        name = f"{precision}/{task}/{output}"
        array = self.arrays.get(name)
        if array is None or len(array) != len(self.names):
            raise GateError(f"{ARRAYS} has no {name} for its {len(self.names)} cases.", _REBUILD)
        return array


def golden_cases(pack: VerifiedPack) -> GoldenCases:
    """Read the golden cases of a verified pack.

    Raises:
        GateError: They are missing, malformed, or not of the pack's input size.
    """
    spec = pack.manifest.input
    try:
        arrays = load((pack.folder / ARRAYS).read_bytes())
        described = json.loads((pack.folder / CASES).read_text(encoding="utf-8"))
        names = tuple(str(case["name"]) for case in described["cases"])
        tolerance = Tolerance(float(described["tolerance"]["score_abs"]), float(described["tolerance"]["mask_dice"]))
        inputs = arrays["inputs"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise GateError(
            f"The golden cases of the pack {pack.manifest.name} can't be read: {error}.", _REBUILD
        ) from error
    if not names or inputs.dtype != np.uint8 or inputs.shape != (len(names), 1, spec.rows, spec.columns):
        raise GateError(
            f"The golden inputs of the pack {pack.manifest.name} are {inputs.dtype} {list(inputs.shape)}, not uint8 "
            f"{[len(names), 1, spec.rows, spec.columns]} with at least one case.",
            _REBUILD,
        )
    return GoldenCases(names, inputs, tolerance, arrays)
