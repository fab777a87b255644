"""The penalty on completions that come near the limit of their length."""

from collections.abc import Sequence

from app.errors import ConfigurationError
from app.rewards.reward import RewardFunction, RewardSample, Scores


class OverlongPenalty(RewardFunction):
    """DAPO's soft punishment of length (arXiv 2503.14476, eq. 13): 0 up to ``max_new_tokens − buffer_tokens``, from
    there in a straight line to −1 at ``max_new_tokens``.

    Args:
        buffer_tokens: the length over which the penalty grows.
    """

    name = "overlong"

    def __init__(self, buffer_tokens: int) -> None:
        if buffer_tokens < 1:
            raise ConfigurationError(f"must be at least 1, got {buffer_tokens}", key="buffer_tokens")
        self.buffer_tokens = buffer_tokens

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        return [self._penalty(sample) for sample in samples]

    def _penalty(self, sample: RewardSample) -> float:
        if self.buffer_tokens > sample.max_new_tokens:
            limit = f"max_new_tokens={sample.max_new_tokens}"
            raise ConfigurationError(f"must be at most {limit}, got {self.buffer_tokens}", key="buffer_tokens")
        excess = sample.n_tokens - (sample.max_new_tokens - self.buffer_tokens)
        return -min(max(excess / self.buffer_tokens, 0.0), 1.0)
