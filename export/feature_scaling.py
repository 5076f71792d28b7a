"""Brings the features of different teachers to one scale, so that none of them drowns the others.

PHI-S (Ranzinger et al., PHI-S: distribution balancing for label-free multi-teacher distillation, ICLR 2025) rotates
features so that every channel has the same variance and then divides all of them by one number: the shape of the
distribution, and with it what an error means, stays as the teacher has it. Standardising divides each channel by its
own deviation.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from appliance.domain.errors import SettingsError

Matrix = NDArray[np.float64]
PHI_S, STANDARDISE = "phi-s", "standardise"
LEAST_DEVIATION = 1e-6
_TWO = 2


@dataclass(frozen=True, eq=False, slots=True)
class Scaling:
    """x to (x - mean) @ matrix, over the last axis; `mean` [C], `matrix` [C, C], float32."""

    mean: Tensor
    matrix: Tensor

    def scaled(self, features: Tensor) -> Tensor:
        """Features [..., C] to [..., C]."""
        return (features - self.mean.to(features.device)) @ self.matrix.to(features.device)


def scaling_of(kind: str, batches: Iterable[Tensor]) -> Scaling:
    """Fit a scaling.

    Args:
        kind: `phi-s` or `standardise`.
        batches: All features, [n, C] at a time.

    Raises:
        SettingsError: An unknown kind, or PHI-S of a number of channels that it can't rotate.
    """
    if kind not in {PHI_S, STANDARDISE}:
        raise SettingsError(f"agglomeration.scaling is {kind!r}.", f"Known: {PHI_S}, {STANDARDISE}.")
    count, total, products = 0, np.zeros(0), np.zeros((0, 0))
    shift = np.zeros(0)
    for batch in batches:
        values = batch.double().numpy()
        if not count:
            shift = values.mean(axis=0)
            total, products = np.zeros(values.shape[1]), np.zeros((values.shape[1], values.shape[1]))
        values = values - shift
        count += len(values)
        total += values.sum(axis=0)
        products += values.T @ values
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    matrix = _phi_s(covariance) if kind == PHI_S else _standardised(covariance)
    return Scaling(torch.from_numpy(mean + shift).float(), torch.from_numpy(matrix).float())


def hadamard(order: int) -> Matrix:
    """A Hadamard matrix: entries of 1 and -1, rows orthogonal; Sylvester's doubling over Paley's construction.

    Raises:
        SettingsError: None of this order is known here.
    """
    if order in {1, _TWO}:
        return np.array([[1.0]]) if order == 1 else np.array([[1.0, 1.0], [1.0, -1.0]])
    if order % 4 == 0:
        prime = order - 1
        if prime % 4 == 3 and _is_prime(prime):  # noqa: PLR2004 - Paley's first construction
            return _paley(prime)
        doubled: Matrix = np.kron(hadamard(_TWO), hadamard(order // _TWO)).astype(np.float64)
        return doubled
    raise SettingsError(
        f"PHI-S can't rotate features of a multiple of {order} channels.", f'Set scaling = "{STANDARDISE}".'
    )


def _paley(prime: int) -> Matrix:
    squares = {(number * number) % prime for number in range(1, prime)}
    character = np.array([0.0] + [1.0 if number in squares else -1.0 for number in range(1, prime)])
    rows = np.arange(prime)
    matrix = np.ones((prime + 1, prime + 1))
    matrix[1:, 1:] = character[(rows[:, None] - rows) % prime] + np.eye(prime)
    matrix[1:, 0] = -1.0
    matrix[0, 0] = 1.0
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _phi_s(covariance: Matrix) -> Matrix:
    variances, directions = np.linalg.eigh(covariance)
    order = len(variances)
    # eigh leaves each direction's sign open; fixing it makes the same features give the same rotation everywhere.
    directions = directions * np.where(directions[np.abs(directions).argmax(axis=0), np.arange(order)] < 0, -1.0, 1.0)
    deviation = max(float(np.sqrt(np.clip(variances, 0, None).mean())), LEAST_DEVIATION)
    rotation: Matrix = directions @ hadamard(order).T / (np.sqrt(order) * deviation)
    return rotation


def _standardised(covariance: Matrix) -> Matrix:
    return np.diag(1.0 / np.maximum(np.sqrt(np.clip(np.diag(covariance), 0, None)), LEAST_DEVIATION))
