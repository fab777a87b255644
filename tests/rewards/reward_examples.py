"""Reward functions of a user's own, for the tests of import by path."""

from collections.abc import Sequence

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
