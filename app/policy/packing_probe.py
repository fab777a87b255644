"""Whether a model may be given packed rows: a few tokens are computed both ways before anything slow starts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from app.policy.evaluating import evaluation
from app.policy.logprobs import PADS_ON_RIGHT
from app.policy.lora import WithoutAdapters
from app.policy.packed_rows import ATTENTION
from app.policy.packing import build
from app.policy.probe import MODEL_ERRORS, OF_THE_RUN, TOLERANCES, plain_log_probs, probe_rows, spread
from app.policy.sharding.wrapping import inner_model
from app.policy.shared_prompts import PACKS_ROWS, packed_log_probs
from app.policy.sources import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = (8, 5)
COMPLETIONS = ((0, 6), (1, 4), (0, 1), (0, 3), (1, 2))
"""(number of its prompt, tokens) of the rows."""
EXACT = 1e-4
"""Mean difference a token that is allowed in float32, in nats: families that amplify rounding are padded."""
WITHIN_ROWS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that look at other tokens through attention alone."""


@dataclass(frozen=True)
class PackingProbe:
    """Finds out whether a model computes packed rows as it computes each row alone.

    Attributes:
        tokenizer: the policy's.
        dtype: that the model computes in.
        device: it computes on.
    """

    tokenizer: "PreTrainedTokenizerBase"
    dtype: torch.dtype
    device: torch.device

    @torch.no_grad()
    def try_on(self, model: "PreTrainedModel") -> str | None:
        """Marks ``model`` for packed rows, or leaves it as it was. Collective for a sharded model.

        To be called after :class:`app.policy.probe.TrainingProbe`, which finds out how the model is padded.

        Returns:
            Why it takes none, in a few words; None where it does.
        """
        if reason := _kind_that_cannot(model):
            return reason
        with evaluation(model, self.device):
            temperature, rows = self._plain(model)
            _set_attention(model, ATTENTION)
            try:
                difference = self._difference(model, temperature, rows)
            except OF_THE_RUN:
                raise
            except MODEL_ERRORS as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            else:
                exact = self.dtype in (torch.float32, torch.float64)
                if not difference <= (EXACT if exact else TOLERANCES[self.dtype]):  # NaN too
                    reason = f"log-probs would differ by {difference:.2g} nats"
        if reason:
            _set_attention(model, "sdpa")
        setattr(model, PACKS_ROWS, not reason)
        return reason

    def _plain(self, model: "PreTrainedModel") -> tuple[float, list[torch.Tensor]]:
        """A temperature at which no token is certain, and each row's log-probs at it, of the row alone."""
        prompts, completions = self._ids(model)
        temperature = spread(model, prompts[0], self.device)
        rows = []
        for prompt, ids in zip(prompts, completions, strict=True):
            alone = plain_log_probs(model, [*prompt, *ids], temperature, self.device)
            rows.append(alone[len(prompt) - 1 :])
        return temperature, rows

    def _difference(self, model: "PreTrainedModel", temperature: float, alone: list[torch.Tensor]) -> float:
        """The largest mean difference of a row, in nats a token; ten times what it changes with the other rows' tokens
        where that is more: in low precision, a little of them would pass for rounding."""
        prompts, completions = self._ids(model)
        packed, beside = (
            packed_log_probs(model, build(prompts, given, pad_id=0).to(self.device), temperature).log_probs
            for given in (completions, [ids[::-1] if row else ids for row, ids in enumerate(completions)])
        )
        differences = [(row[: len(own)] - own).abs().mean() for row, own in zip(packed, alone, strict=True)]
        return float(torch.stack([*differences, 10 * (packed[0] - beside[0]).abs().mean()]).max())  # NaN, if one is

    def _ids(self, model: "PreTrainedModel") -> tuple[list[list[int]], list[list[int]]]:
        rows = probe_rows(self.tokenizer, model, [*PROMPTS, *(length for _, length in COMPLETIONS)], max(PROMPTS))
        prompts, completions = rows[: len(PROMPTS)], rows[len(PROMPTS) :]
        return [prompts[number] for number, _ in COMPLETIONS], completions


def _kind_that_cannot(model: "PreTrainedModel") -> str | None:
    """What is known without computing anything."""
    inner: Any = inner_model(model)
    config = inner.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - WITHIN_ROWS)
    if getattr(model, PADS_ON_RIGHT, False):
        return "padding must not come before its rows"
    if inner._is_stateful or others:
        return f"its layers carry a state from token to token ({', '.join(others) or type(inner).__name__})"
    if any(isinstance(module, torch.nn.Conv1d) for module in inner.modules()):
        return "its layers mix neighbouring tokens"
    if inner.config._attn_implementation != "sdpa" or not inner._can_set_attn_implementation():
        return f"its attention ({inner.config._attn_implementation}) is not one that transformers calls as sdpa"
    if getattr(config, "attn_temperature_tuning", False):
        # Llama 4 scales attention by places in the row that it is given, whatever its position ids.
        return "its attention counts positions by itself"
    return None


def _set_attention(model: "PreTrainedModel", name: str) -> None:
    import app.policy.packed_attention  # noqa: F401  registers it

    with quiet():
        inner_model(model).set_attn_implementation(name)


def share_packing(model: Any, other: Any) -> None:
    """Has ``other``, of the same family, take packed rows where ``model`` does."""
    packs = getattr(model, PACKS_ROWS, False)
    setattr(other, PACKS_ROWS, packs)
    if packs and not isinstance(other, WithoutAdapters):
        _set_attention(other, ATTENTION)
