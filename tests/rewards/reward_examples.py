"""Reward functions of a user's own, for the tests of import by path."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import torch

from app.rewards.reward import RewardSample

NOT_A_FUNCTION = 3


def brevity(samples: Sequence[RewardSample]) -> list[float | None]:
    """1 for a completion of one character, less for longer ones; none for an empty one."""
    return [1 / len(sample.completion) if sample.completion else None for sample in samples]


def gives_up(samples: Sequence[RewardSample]) -> list[float]:
    raise SystemExit("no answer")


def fails_on_digits(samples: Sequence[RewardSample]) -> list[float]:
    """Fails for completions with a digit."""
    return [1.0 if int("0" + sample.completion) == 0 else 1 / 0 for sample in samples]


def too_few(samples: Sequence[RewardSample]) -> list[float]:
    """Returns nothing."""
    return []


def words(samples: Sequence[RewardSample]) -> list[str]:
    """Returns no numbers."""
    return ["good" for _ in samples]


def infinite(samples: Sequence[RewardSample]) -> list[float]:
    """Returns what no mean survives."""
    return [float("nan") for _ in samples]


def two_arguments(samples: Sequence[RewardSample], weight: float) -> list[float]:
    """Has another signature."""
    return [weight for _ in samples]


def many_lines(samples: Sequence[RewardSample]) -> list[float]:
    raise ValueError("a first line\n   and a second\n" + "x" * 2000)


RETURNED: dict[str, Any] = {
    "dictionary": {0: 1.0, 1: 0.0},
    "set": {1.0, 0.0},
    "text": "10",
    "nothing": None,
    "number": 1.0,
    "scalar tensor": torch.tensor(1.0),
    "matrix": torch.zeros(2, 3),
    "column": torch.zeros(2, 1),
    "numpy matrix": numpy.zeros((2, 2)),
    "list of lists": [[1.0, 2.0], [3.0]],
    "list of vectors": [torch.zeros(3), torch.zeros(3)],
    "too large": [10**400, 1],
    "complex": [1j, 1.0],
    "array strings": numpy.array(["1", "0"]),
    "vector": torch.tensor([1.0, 0.0], requires_grad=True),
    "numpy vector": numpy.array([1, 0]),
    "tuple": (True, None),
}
"""What functions return that do not return a list of floats, for two samples."""


def generator(samples: Sequence[RewardSample]) -> Iterator[float]:
    """Scores one after the other."""
    yield from (float(index) for index, _ in enumerate(samples))


def meddler(samples: Sequence[RewardSample]) -> list[float]:
    """Leaves the process another one than it found, as a reward model's script may."""
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    os.chdir("/")
    return [float(len(sample.completion) % 3) for sample in samples]
