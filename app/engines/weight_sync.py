"""Exact fingerprints of a policy's weights, which prove that they arrived in an engine.

A fingerprint is a sum over a tensor's elements of (bits of the value) · (a number mixed from its position), modulo
2^64. Integer sums do not depend on the order of summation, so that shards, fused layouts and other devices give the
same number, and one changed bit changes it. Of wide matrices a sample of columns is taken, another one each round:
gradient steps change every column, and after ``ceil(width / COLUMNS)`` rounds all have been compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from app.errors import CommonError
from app.policy.sharding.merging import Weights

COLUMNS = 32
MODULUS = 2**64
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ROWS_AT_ONCE = 1 << 16


class WeightSyncError(CommonError):
    """The engine does not hold the policy's weights: some ``differ``, some are ``absent`` (names of tensors)."""

    def __init__(self, names: list[str], absent: list[str]) -> None:
        self.differ, self.absent = names, absent
        differ = f"differ in {_listed(names)}" if names else ""
        lost = f"lack {_listed(absent)}" if absent else ""
        what = " and ".join(part for part in (differ, lost) if part)
        super().__init__(
            f"after the weight sync the engine's weights {what}: rollouts would not be the policy's. Where vLLM lays "
            "this family out in a way that cannot be compared, use the transformers engine"
        )

    def __reduce__(self) -> tuple[type["WeightSyncError"], tuple[list[str], list[str]]]:
        return WeightSyncError, (self.differ, self.absent)  # other ranks hear of it too


def _listed(names: list[str], limit: int = 3) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def sampled_columns(width: int, round_number: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """[K] int64, K ≤ ``COLUMNS``: the columns of a matrix of this width that are compared in this round."""
    stride = -(-width // COLUMNS)
    return torch.arange(round_number % stride, width, stride, device=device)


def fingerprint(values: torch.Tensor, columns: torch.Tensor, width: int, first_row: int = 0) -> int:
    """The fingerprint of some columns of a matrix, or of some of its rows: those of parts add up modulo 2^64.

    Args:
        values: [R, K], the rows from ``first_row`` on, at ``columns``.
        columns: [K] int64, their numbers in the whole matrix.
        width: of the whole matrix.
        first_row: number of the first of these rows in the whole matrix.
    """
    total = 0
    for start in range(0, len(values), _ROWS_AT_ONCE):
        part = values[start : start + _ROWS_AT_ONCE]
        rows = torch.arange(first_row + start, first_row + start + len(part), device=part.device)
        positions = rows[:, None] * width + columns[None, :].to(part.device)
        total += int((_bits(part) * _mixed(positions)).sum())
    return total % MODULUS


def _bits(values: torch.Tensor) -> torch.Tensor:
    """The values' bit patterns as int64; −0 counts as 0, which no computation tells apart."""
    return (values + 0.0).contiguous().view(_BITS[values.element_size()]).long()


def _mixed(positions: torch.Tensor) -> torch.Tensor:
    """An odd number for each position, spread over 64 bits (products wrap around, as meant)."""
    spread = positions * -7046029254386353131
    return (spread ^ (spread >> 29)) | 1


def as_matrix(tensor: torch.Tensor) -> torch.Tensor:
    """[R, W]: vectors become one column, so that a slice of a vector is a range of rows like any other."""
    return tensor[:, None] if tensor.dim() == 1 else tensor.flatten(0, -2)


def whole_fingerprint(tensor: torch.Tensor, round_number: int) -> int:
    """The fingerprint of a whole tensor in this round."""
    matrix = as_matrix(tensor)
    columns = sampled_columns(matrix.shape[1], round_number, matrix.device)
    return fingerprint(matrix.index_select(1, columns), columns, matrix.shape[1])


@dataclass
class SyncRecord:
    """What one sync sent: fingerprints by name, taken on the way.

    Attributes:
        dtype: the engine's; values are compared as it rounds them.
        round_number: which sync this is, from 0.
        transposed: names of weights that engines compute with the other way round.
        sent: fingerprint by name.
        widths: number of columns by name, as :func:`as_matrix` sees them.
        bytes: of all that was sent, in the engine's dtype.
    """

    dtype: torch.dtype
    round_number: int
    transposed: frozenset[str] = frozenset()
    sent: dict[str, int] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    def count(self, weights: Weights) -> Weights:
        """Passes ``weights`` on and adds up their bytes."""
        for name, tensor in weights:
            self.bytes += tensor.numel() * self.dtype.itemsize
            yield name, tensor

    def watch(self, weights: Weights) -> Weights:
        """Passes ``weights`` on and takes their fingerprints."""
        for name, tensor in weights:
            used = tensor.T if name in self.transposed else tensor
            self.sent[name] = whole_fingerprint(used.to(self.dtype), self.round_number)
            self.widths[name] = as_matrix(used).shape[1]
            yield name, tensor

    def check(self, held: Mapping[str, int]) -> None:
        """Raises WeightSyncError unless ``held``, the engine's fingerprints, equal those that were sent."""
        absent = [name for name in self.sent if name not in held]
        differ = [name for name in self.sent if name in held and held[name] % MODULUS != self.sent[name]]
        if differ or absent:
            raise WeightSyncError(differ, absent)


def sum_of_shards(shards: list[dict[str, int]]) -> dict[str, int]:
    """Fingerprints of whole tensors from those of their shards on all workers."""
    names = {name for shard in shards for name in shard}
    return {name: sum(shard.get(name, 0) for shard in shards) % MODULUS for name in names}
