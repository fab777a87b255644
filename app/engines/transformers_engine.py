"""The policy itself as rollout engine: a batched sampler around ``model(**inputs)`` of any HF causal LM.

A prompt is prefilled once for all its completions, the key-value cache is written in place, and rows that have
ended leave the batch. Nothing is copied from the trainer: ``sync`` only takes note of the policy.

Shapes: B rows of one batch, L of them still live, P prompts, S width of the prompts, T longest completion.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from app.engines.engine import Completion, Ended, FinishReason, GenerationRequest, PolicyOwner, RolloutEngine
from app.engines.probe import bears_padding
from app.engines.sampling import draw, uniforms
from app.engines.stop_strings import StopStrings
from app.errors import ConfigurationError
from app.policy.context import context_length
from app.policy.decoding import forbidden_ids
from app.policy.evaluating import evaluation_mode
from app.policy.packing import pad_left, positions
from app.policy.probe import family
from app.policy.sharding.gathering import whole_parameters
from app.stopping import STOP

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
CHECK_EVERY = 4
"""Steps between two looks for ended rows: on a GPU each look waits for the device."""
DROP_SHARE = 1 / 16
"""Share of a batch's rows that must have ended before they are dropped, which copies the cache."""

Row = tuple[int, int]
"""(index of the request, index of the completion)."""


class TransformersEngine(RolloutEngine):
    """Samples with the module's own policy, in inference mode and in eval mode (restored afterwards).

    Args:
        max_batch_rows: rows decoded together; more are done in turns, without effect on what is drawn.

    Attributes:
        pads: whether prompts of unequal lengths may share a batch; ``start`` finds it out.
        streams: whether the cache is that of :mod:`app.engines.streamed_attention`; ``start`` finds it out.
    """

    def __init__(self, max_batch_rows: int = 256) -> None:
        if max_batch_rows < 1:
            raise ConfigurationError(f"must be at least 1, got {max_batch_rows}", key="engine.max_batch_rows")
        self.max_batch_rows = max_batch_rows
        self.pads, self.streams = True, False
        self._module: PolicyOwner | None = None

    def start(self, module: PolicyOwner) -> None:
        """Draws a few tokens to see that the policy generates what it is trained on.

        Raises:
            ConfigurationError: it does not, with this engine.
        """
        from app.engines.streamed_attention import may_stream

        self._module, draw = module, partial(self._completions, module)
        self.streams = may_stream(module.policy, module.compute_dtype)
        try:
            self.pads = bears_padding(module, draw)
        except ConfigurationError as reason:
            if not self.streams:
                raise
            log.info("%s keeps transformers' attention, which is slower on a CPU: %s", family(module.policy), reason)
            self.streams = False
            self.pads = bears_padding(module, draw)

    def sync(self, module: PolicyOwner) -> None:
        """Keeps a reference: the weights are the policy's own."""
        self._module = module

    def close(self) -> None:
        self._module = None

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """``n`` completions a request, in order. A completion ends at the model's context length, too ("length").

        Raises:
            ConfigurationError: a prompt is empty, as long as the context, or has ids outside the vocabulary.
            RuntimeError: the engine was not started, or was closed.
        """
        if self._module is None:
            raise RuntimeError("the engine is not started: call start(module) before generate")
        return self._completions(self._module, requests, self.pads)

    @torch.inference_mode()
    def _completions(
        self, module: PolicyOwner, requests: Sequence[GenerationRequest], pads: bool
    ) -> list[list[Completion]]:
        policy = module.policy
        _check(requests, policy)
        done: dict[Row, Completion] = {}
        # Ranks decode for as long as their own completions last: no step may wait for another rank.
        with whole_parameters(policy), evaluation_mode(policy), STOP.interruptible():
            for rows in self._batches(requests, pads):
                done |= _Batch(module, requests, rows, self.streams, self.on_ended).run()
        return [[done[number, i] for i in range(request.n)] for number, request in enumerate(requests)]

    def _batches(self, requests: Sequence[GenerationRequest], pads: bool) -> Iterator[list[Row]]:
        """Rows that are decoded together: same sampling, prompts of alike lengths, a prompt's rows side by side."""
        kinds: dict[Any, list[int]] = {}
        for number, request in enumerate(requests):
            width = 0 if pads else len(request.prompt_ids)
            kinds.setdefault((request.sampling, request.end_token_ids, width), []).append(number)
        for numbers in kinds.values():
            numbers.sort(key=lambda number: -len(requests[number].prompt_ids))
            rows = [(number, i) for number in numbers for i in range(requests[number].n)]
            for start in range(0, len(rows), self.max_batch_rows):
                yield rows[start : start + self.max_batch_rows]


@dataclass
class _Live:
    """What belongs to the L rows that are still decoded; one line of every tensor a row."""

    row: Tensor
    """[L] positions in the batch."""
    ids: Tensor
    """[L, T] sampled so far."""
    log_probs: Tensor
    """[L, T] float32 of ``ids``."""
    uniforms: Tensor
    """[L, T] the random numbers."""
    limit: Tensor
    """[L] longest completion that context and settings allow."""
    end: Tensor
    """[L] tokens up to the end token or stop string found so far, itself included; beyond ``limit`` without."""
    attention_mask: Tensor
    """[L, S + T]."""
    prompt_length: Tensor
    """[L, 1] real prompt tokens."""

    def select(self, index: Tensor) -> "_Live":
        return _Live(**{name: value[index] for name, value in vars(self).items()})


class _Batch:
    """One batch from prefill to the last row's end."""

    def __init__(
        self,
        module: PolicyOwner,
        requests: Sequence[GenerationRequest],
        rows: list[Row],
        streams: bool,
        on_ended: Callable[[Sequence[Ended]], None] | None,
    ) -> None:
        from app.engines.kv_cache import cache_argument, new_cache
        from app.engines.streamed_attention import streamed_attention, streamed_cache

        self.policy, self.rows, self.on_ended = module.policy, rows, on_ended
        first = requests[rows[0][0]]
        self.sampling = first.sampling
        self.device = next(self.policy.parameters()).device
        self.end_ids = torch.tensor(first.end_token_ids, dtype=torch.long, device=self.device)
        stop_strings = first.sampling.stop_strings
        self.stop = StopStrings(module.tokenizer, stop_strings) if stop_strings else None
        unknown = forbidden_ids(self.sampling, module.tokenizer, self.policy)
        self.forbidden = torch.tensor(unknown, device=self.device) if unknown else None
        self.context = context_length(self.policy.config)
        self.attention = streamed_attention() if streams else contextlib.nullcontext()
        self.cache = (streamed_cache if streams else new_cache)(self.policy.config)
        self.cached = {cache_argument(self.policy): self.cache, "use_cache": True}
        self.numbers = list(dict.fromkeys(number for number, _ in rows))
        self.prompts = [requests[number].prompt_ids for number in self.numbers]
        self.seeds = [requests[number].seed for number, _ in rows]
        self.padded = len({len(prompt) for prompt in self.prompts}) > 1
        self.checked = 0

    def run(self) -> dict[Row, Completion]:
        logits, live = self._prefill()
        with self.attention:
            return self._decode(logits, live)

    def _decode(self, logits: Tensor, live: _Live) -> dict[Row, Completion]:
        done: dict[Row, Completion] = {}
        steps = live.ids.shape[1]
        for step in range(steps):
            if self.forbidden is not None:
                logits = logits.index_fill(-1, self.forbidden, -torch.inf)
            ids, live.log_probs[:, step] = draw(logits, self.sampling, live.uniforms[:, step])
            live.ids[:, step] = ids
            last = step + 1 == steps
            if last or (step + 1) % CHECK_EVERY == 0:
                live = self._drop_ended(live, step + 1, done, force=last)
            if len(live.row) == 0:
                break
            logits = self._forward(live, step)
        return done

    def _prefill(self) -> tuple[Tensor, _Live]:
        """Logits [B, V] of the first completion tokens, and the rows' state; every prompt is evaluated once."""
        ids, mask = (x.to(self.device) for x in pad_left(self.prompts, pad_id=0))
        output = self.policy(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask),
            logits_to_keep=1,
            **self.cached,
        )
        place = {number: index for index, number in enumerate(self.numbers)}
        owner = torch.tensor([place[number] for number, _ in self.rows], device=self.device)
        self.cache.reorder_cache(owner)
        return output.logits[owner, -1], self._new_rows(mask[owner])

    def _new_rows(self, prompt_mask: Tensor) -> _Live:
        prompt_length = prompt_mask.sum(1, keepdim=True)
        limit = torch.full((len(self.rows),), self.sampling.max_new_tokens, device=self.device)
        if self.context is not None:
            limit = torch.minimum(limit, self.context - prompt_length[:, 0])
        shape = len(self.rows), int(limit.max())
        numbers = [uniforms(seed, i, shape[1]) for seed, (_, i) in zip(self.seeds, self.rows, strict=True)]
        return _Live(
            row=torch.arange(len(self.rows), device=self.device),
            ids=torch.zeros(shape, dtype=torch.long, device=self.device),
            log_probs=torch.zeros(shape, device=self.device),
            uniforms=torch.stack(numbers).to(self.device),
            limit=limit,
            end=limit + 1,
            attention_mask=torch.cat([prompt_mask, prompt_mask.new_ones(shape)], dim=1),
            prompt_length=prompt_length,
        )

    def _forward(self, live: _Live, step: int) -> Tensor:
        """Logits [L, V] after the token of ``step``."""
        position = live.prompt_length + step
        if self.context is not None:  # rows at their limit that were not dropped yet
            position = position.clamp(max=self.context - 1)
        width = live.attention_mask.shape[1] - live.ids.shape[1] + step + 1
        return self.policy(
            input_ids=live.ids[:, step : step + 1],
            attention_mask=live.attention_mask[:, :width] if self.padded else None,
            position_ids=position,
            logits_to_keep=1,
            **self.cached,
        ).logits[:, -1]

    def _drop_ended(self, live: _Live, steps: int, done: dict[Row, Completion], force: bool) -> _Live:
        """Looks at the tokens since the last look; moves ended rows to ``done`` where enough have ended."""
        self._find_ends(live, steps)
        ended = torch.minimum(live.end, live.limit) <= steps
        count = int(ended.sum())
        if not force and count < max(1, len(ended) * DROP_SHARE):
            return live
        completions = self._completions(live.select(ended.nonzero()[:, 0]))
        done |= completions
        if self.on_ended is not None:
            self.on_ended([(*row, completion) for row, completion in completions.items()])
        kept = (~ended).nonzero()[:, 0]
        if len(kept):
            self.cache.reorder_cache(kept)
        return live.select(kept)

    def _find_ends(self, live: _Live, steps: int) -> None:
        """Lowers ``live.end`` of rows in whose tokens [checked, steps) an end token or stop string lies."""
        is_end = torch.isin(live.ids[:, self.checked : steps], self.end_ids)
        # argmax finds the first
        ends = torch.where(is_end.any(1), is_end.int().argmax(1) + self.checked + 1, live.end)
        if self.stop is not None:
            ends = self._stop_string_ends(live.ids, ends.tolist(), steps)
        live.end = torch.minimum(live.end, ends)
        self.checked = steps

    def _stop_string_ends(self, ids: Tensor, ends: list[int], steps: int) -> Tensor:
        """[L] ``ends``, lowered where a stop string is complete before the end token."""
        assert self.stop is not None
        start = self.stop.tail_start(self.checked)
        tails = [tail[: max(0, end - start)] for tail, end in zip(ids[:, start:steps].tolist(), ends, strict=True)]
        found = self.stop.first_ends(tails, self.checked - start)
        merged = [end if new is None else start + new for end, new in zip(ends, found, strict=True)]
        return torch.tensor(merged, device=self.device)

    def _completions(self, live: _Live) -> dict[Row, Completion]:
        columns = (live.row, live.end, live.limit, live.ids, live.log_probs)
        done = {}
        for row, end, limit, ids, log_probs in zip(*(column.tolist() for column in columns), strict=True):
            reason: FinishReason = "stop" if end <= limit else "length"
            length = min(end, limit)
            done[self.rows[row]] = Completion(ids[:length], log_probs[:length], reason)
        return done


def _check(requests: Sequence[GenerationRequest], policy: "PreTrainedModel") -> None:
    context, vocabulary = context_length(policy.config), policy.config.get_text_config().vocab_size
    for number, request in enumerate(requests):
        length, where = len(request.prompt_ids), f"prompt {number} of {len(requests)}"
        if length == 0:
            raise ConfigurationError(f"{where} is empty")
        if context is not None and length >= context:
            raise ConfigurationError(
                f"{where} has {length} tokens, which leaves no room in the model's context of {context} "
                "(max_position_embeddings); shorten or filter the prompts"
            )
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocabulary:
            raise ConfigurationError(
                f"{where} has token ids outside the model's vocabulary of {vocabulary}: "
                "prompts and policy use different tokenizers"
            )
