"""A few tokens through a policy before anything slow starts: does it mean what the trainer takes it to mean?

Families differ in what they make of padding, of tokens that come later, of train mode. What is wrong there raises no
error: log-probs are off by nats, and a run trains on them. Here each row is evaluated alone, without padding, cache or
mask, and everything else is held against that.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from app.errors import ConfigurationError
from app.policy.context import context_length
from app.policy.evaluating import evaluation
from app.policy.head import HEAD, NotApart, take_apart
from app.policy.logprobs import PADS_ON_RIGHT, selective_log_softmax, statistics_at, token_log_probs
from app.policy.packing import build
from app.policy.sharding.wrapping import inner_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Mean difference a token, in nats at a temperature of the logits' own spread. Between ways to compute the same, 160
families of random weights differ by at most 1e-5 in float32; 0.1 is what the first rollout may differ by, too. What is
wrong differs by 0.1 to 4."""
MODEL_ERRORS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, AssertionError)
"""What models raise over inputs that they cannot take."""
OF_THE_RUN = (ConfigurationError, torch.OutOfMemoryError, torch.distributed.DistError)
"""Those of them, or raised beside them, that say nothing of a model's family: to be let through first."""

LENGTHS = ((8, 6), (2, 5), (5, 3))
"""(prompt, completion) tokens of the rows: short ones beside longer ones, on either side."""
FACTOR = 40503


class ProbeFailure(ConfigurationError):
    """What the policy was found to do, as one line."""


def probe_rows(
    tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel", lengths: Sequence[int], room: int = 0
) -> list[list[int]]:
    """Rows of ordinary tokens, spread over the vocabulary; they leave ``room`` tokens of the model's context.

    Special tokens are left out: some models tell padding, or an image's place, by their ids.
    """
    config = inner_model(model).config
    size = min(len(tokenizer), config.get_text_config().vocab_size)
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(min(size, 100_000)) if token not in special] or list(range(size))
    context = context_length(config)
    longest = max(lengths) if context is None else max(1, min(max(lengths), context - room))
    return [
        [ordinary[FACTOR * (1 + row * longest + column) % len(ordinary)] for column in range(min(length, longest))]
        for row, length in enumerate(lengths)
    ]


def plain_log_probs(model: "PreTrainedModel", row: Sequence[int], temperature: float, device: Any) -> Tensor:
    """[length − 1] log-probs of a row's tokens from the second on, of the row alone."""
    ids = torch.tensor([list(row)], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return selective_log_softmax(logits, ids[:, 1:], temperature)[0]


def spread(model: "PreTrainedModel", row: Sequence[int], device: Any) -> float:
    """Standard deviation of the logits over the vocabulary, 1 at least: a temperature at which no token is certain."""
    logits = model(input_ids=torch.tensor([list(row)], device=device), use_cache=False).logits
    return max(1.0, float(logits.float().std(-1).mean()))


@contextlib.contextmanager
def refusing(model: "PreTrainedModel", key: str) -> Iterator[None]:
    """Turns what a model raises inside over its inputs into one line that names its family."""
    try:
        yield
    except OF_THE_RUN:
        raise
    except MODEL_ERRORS as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ProbeFailure(f"{family(model)} cannot be used: of a few tokens it raises {what}", key=key) from error


def family(model: "PreTrainedModel") -> str:
    """The model's type and class, as a user knows them."""
    inner = inner_model(model)
    names = [cls.__name__ for cls in type(inner).__mro__ if cls.__module__.startswith("transformers.models.")]
    return f"{inner.config.model_type} ({(names or [type(inner).__name__])[0]})"


@dataclass(frozen=True)
class TrainingProbe:
    """Whether the trainer's log-probs of a model are those of its rows alone.

    Attributes:
        tokenizer: the policy's.
        dtype: that the model computes in.
        device: it computes on.
        train_mode: whether train mode must be no other than eval mode: in RL every ratio is taken between the two.
        layouts: of padding, in the order of trial: "left" (of prompts) and "right".
    """

    tokenizer: "PreTrainedTokenizerBase"
    dtype: torch.dtype
    device: torch.device
    train_mode: bool = True
    layouts: tuple[str, ...] = ("left", "right")

    @torch.no_grad()
    def check(self, model: "PreTrainedModel") -> dict[str, float]:
        """Differences by what was compared. Collective for a sharded model.

        A model that is right under padding at the ends of rows alone is marked for :mod:`app.policy.logprobs`, and so
        is one whose log-probs come from its hidden states as they do from its logits. One that overflows by itself
        passes: where its numbers arise in the run, they end it by their own name.

        Raises:
            ProbeFailure: the model is wrong, or raises.
        """
        rows = probe_rows(self.tokenizer, model, [sum(pair) for pair in LENGTHS])
        with refusing(model, "model.policy"), evaluation(model, self.device):
            temperature = spread(model, rows[0], self.device)
            alone = [plain_log_probs(model, row, temperature, self.device) for row in rows]
            if not_finite(*alone):
                log.debug("%s: log-probs of rows alone are not finite, which says nothing of the family", family(model))
                return {}
            found = {"causality": self._causality(model, rows[0], alone[0], temperature)}
            if self.train_mode:
                found["train mode"] = self._train_mode(model, rows[0], alone[0], temperature)
            self._judge(model, found)
            self._take_apart(model, rows[0], alone[0], temperature)
            found |= self._padding(model, rows, alone, temperature)
        log.debug("%s, differences in nats a token: %s", family(model), found)
        return found

    def _causality(self, model: "PreTrainedModel", row: list[int], alone: Tensor, temperature: float) -> float:
        half = len(row) // 2 + 1
        return _mean(plain_log_probs(model, row[:half], temperature, self.device) - alone[: half - 1])

    def _train_mode(self, model: "PreTrainedModel", row: list[int], alone: Tensor, temperature: float) -> float:
        modes = [(module, module.training) for module in model.modules()]
        for module, _ in modes:
            module.training = True
        try:
            return _mean(plain_log_probs(model, row, temperature, self.device) - alone)
        finally:
            for module, training in modes:
                module.training = training

    def _take_apart(self, model: "PreTrainedModel", row: list[int], alone: Tensor, temperature: float) -> None:
        """Marks the model with its output head, or with why log-probs need its logits."""
        ids = torch.tensor([row], device=self.device)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        try:
            setattr(model, HEAD, take_apart(model, ids))
            own = statistics_at(model, lambda hidden: hidden[0, :-1], ids[0, 1:], temperature, **inputs).log_probs
            difference = _mean(own - alone)
            if not difference <= TOLERANCES[self.dtype]:
                raise NotApart(f"log-probs from its hidden states differ by {difference:.2g} nats from its own")
        except NotApart as reason:
            setattr(model, HEAD, str(reason))
        except OF_THE_RUN:
            raise
        except MODEL_ERRORS as error:
            setattr(model, HEAD, f"it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _padding(
        self, model: "PreTrainedModel", rows: list[list[int]], alone: list[Tensor], temperature: float
    ) -> dict[str, float]:
        """Tries the layouts until one is right, and leaves the model marked for it."""
        prompts = [min(prompt, len(row) - 1) for (prompt, _), row in zip(LENGTHS, rows, strict=True)]
        pairs = list(zip(rows, prompts, strict=True))
        batch = build([row[:prompt] for row, prompt in pairs], [row[prompt:] for row, prompt in pairs], pad_id=0)
        wanted = [values[prompt - 1 :] for values, prompt in zip(alone, prompts, strict=True)]
        found = {}
        for layout in self.layouts:
            setattr(model, PADS_ON_RIGHT, layout == "right")
            log_probs = token_log_probs(model, batch.to(self.device), temperature).log_probs
            differences = [given[: len(values)] - values for given, values in zip(log_probs, wanted, strict=True)]
            found[f"{layout} padding"] = max(map(_mean, differences))
            if found[f"{layout} padding"] <= TOLERANCES[self.dtype]:
                return found
        worst = min(found.values())
        raise ProbeFailure(
            f"{family(model)} is not offered: padding beside a row changes its tokens' log-probs by {worst:.2g} nats",
            key="model.policy",
        )

    def _judge(self, model: "PreTrainedModel", found: dict[str, float]) -> None:
        meanings = {
            "causality": "tokens that come later change the log-probs of those before by {:.2g} nats: it is no causal "
            "language model (is_decoder: false?)",
            "train mode": "in train mode its log-probs differ by {:.2g} nats from those in eval mode: what it draws at "
            "random would be taken for a change of the policy",
        }
        for what, difference in found.items():
            if not difference <= TOLERANCES[self.dtype]:  # NaN too
                raise ProbeFailure(
                    f"{family(model)} is not offered: {meanings[what].format(difference)}", key="model.policy"
                )


def share_findings(model: Any, other: Any) -> None:
    """Has ``other``, of the same family, padded as ``model`` is, and its log-probs made in the same way."""
    setattr(other, PADS_ON_RIGHT, getattr(model, PADS_ON_RIGHT, False))
    setattr(other, HEAD, getattr(model, HEAD, None))


def not_finite(*log_probs: Tensor) -> bool:
    """Whether any is NaN or infinite: of weights that overflow, whatever the family."""
    return not all(bool(values.isfinite().all()) for values in log_probs)


def _mean(differences: Tensor) -> float:
    return float(differences.abs().mean())
