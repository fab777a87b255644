"""What a rollout engine is: prompts' token ids in, sampled completions out. Every engine keeps this contract."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from app.errors import ConfigurationError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn. ``temperature: 0`` is greedy decoding.

    The order is the field's: logits / temperature, then top-k, then top-p, then min-p, renormalised.

    Attributes:
        temperature: divides the logits; the trainer's log-probs use the same one.
        top_p: smallest set of tokens whose probabilities reach this sum; 1 switches it off.
        top_k: the k most likely tokens; 0 switches it off.
        min_p: tokens of at least this share of the most likely one's probability; 0 switches it off.
        max_new_tokens: longest completion, the end token included.
        stop_strings: a completion ends with the token that completes one of these; that token is kept.
        forbid_unknown_tokens: never draws ids that the model's embeddings have and its tokenizer does not (they are
            often padded). What is drawn then is the rest of the distribution, renormalised, as with top_k: the
            trainer's log-probs are of the whole one, and differ by −log of the probability that is left.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 256
    stop_strings: tuple[str, ...] = ()
    forbid_unknown_tokens: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_strings", tuple(self.stop_strings))
        limits = {
            "temperature": (self.temperature >= 0, "must be at least 0 (0 is greedy)"),
            "top_p": (0 < self.top_p <= 1, "must lie in (0, 1]"),
            "top_k": (self.top_k >= 0, "must be at least 0 (0 switches it off)"),
            "min_p": (0 <= self.min_p <= 1, "must lie in [0, 1]"),
            "max_new_tokens": (self.max_new_tokens >= 1, "must be at least 1"),
            "stop_strings": (all(self.stop_strings), "must not be empty strings"),
        }
        for name, (holds, rule) in limits.items():
            if not holds:
                raise ConfigurationError(f"{rule}, got {getattr(self, name)}", key=f"sampling.{name}")

    @property
    def truncates(self) -> bool:
        """True where the sampled distribution is narrower than softmax(logits / temperature)."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True)
class GenerationRequest:
    """n completions for one prompt.

    Attributes:
        prompt_ids: the prompt's token ids, without padding; at least one.
        n: completions wanted.
        seed: completion i is a pure function of (weights, prompt_ids, sampling, seed, i), whatever else is in
            the same call.
        sampling: see :class:`SamplingSettings`.
        end_token_ids: ids that end a completion with finish reason "stop" (EOS and its kin).
    """

    prompt_ids: Sequence[int]
    n: int
    seed: int
    sampling: SamplingSettings
    end_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
        token_ids: the sampled ids, the end token included; never empty.
        log_probs: for each of them its log-probability under the distribution that it was drawn from
            (temperature and truncation applied; for greedy decoding, softmax of the plain logits).
        finish_reason: "stop" (an end token or a stop string) or "length" (max_new_tokens reached: truncated).
    """

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"

    @property
    def finite(self) -> bool:
        """Whether every token was drawn from a distribution, and not from the NaNs of an overflow."""
        return all(map(math.isfinite, self.log_probs))


class PolicyOwner(Protocol):
    """What an engine needs to know of the LightningModule that owns the policy."""

    @property
    def policy(self) -> "PreTrainedModel": ...

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase": ...

    @property
    def device(self) -> "torch.device": ...

    @property
    def compute_dtype(self) -> "torch.dtype": ...


Ended = tuple[int, int, Completion]
"""(number of the request, index of the completion, the completion)."""


class RolloutEngine(Protocol):
    """Generates completions with the policy's current weights.

    ``start`` is called once before the first ``sync``; ``sync`` hands over the policy's weights and is called
    before every round of generation whose weights may have changed; ``close`` frees everything, may be called
    twice, and is called on errors and signals too.

    Attributes:
        on_ended: where a caller has set it, ``generate`` hands it completions as soon as they have ended, several at
            once and in any order, in the thread that generates. An engine that does not know of them before its end
            leaves it alone; what ``generate`` returns is the same.
    """

    on_ended: Callable[[Sequence[Ended]], None] | None = None

    def start(self, module: PolicyOwner) -> None: ...

    def sync(self, module: PolicyOwner) -> None: ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """One list of ``n`` completions a request, in order."""
        ...

    def close(self) -> None: ...
