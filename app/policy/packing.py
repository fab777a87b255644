"""Ragged prompts and completions as one padded batch: prompts on the left, completions on the right.

Shapes: B rows, P width of the prompts, T width of the completions, S = P + T. Annotations name them, and are checked at
every call in the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

PerRow = Int[Tensor, " B"]
Tokens = Int[Tensor, "B S"]
Rows = Int[Tensor, " rows"]
"""Indices of rows."""


@dataclass(frozen=True)
class TokenBatch:
    """Prompts, left-padded, followed by completions, right-padded.

    Attributes:
        input_ids: [B, S] int64.
        attention_mask: [B, S] int64; 1 on real tokens.
        position_ids: [B, S] int64; a row's first real token has position 0, whatever its padding.
        prompt_length: P; columns from P on are completion tokens.
        completion_mask: [B, T] bool; true on real completion tokens.
        prompt_lengths, completion_lengths: [B] int64, real tokens a row. They stay on the CPU, whatever the batch's
            device: widths are chosen by them, and to read them there would wait for all work that is queued on a GPU.
        prompt_numbers: [B] int64, equal for rows with the same prompt; on the CPU, too.
    """

    input_ids: Int[Tensor, "B S"]
    attention_mask: Int[Tensor, "B S"]
    position_ids: Int[Tensor, "B S"]
    prompt_length: int
    completion_mask: Bool[Tensor, "B T"]
    prompt_lengths: PerRow
    completion_lengths: PerRow
    prompt_numbers: PerRow

    @property
    def completion_ids(self) -> Int[Tensor, "B T"]:
        """[B, T] int64, filled up with the pad id."""
        return self.input_ids[:, self.prompt_length :]

    @property
    def lengths(self) -> PerRow:
        """[B] real tokens a row, prompt and completion; on the CPU."""
        return self.prompt_lengths + self.completion_lengths

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on ``device``."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            position_ids=self.position_ids.to(device),
            completion_mask=self.completion_mask.to(device),
        )

    def select(self, rows: Rows | Sequence[int]) -> "TokenBatch":
        """The given rows, without the columns that are padding in all of them.

        Completions lose columns on their right alone: column t stays token t. One column always stays. Rows that are
        named on the CPU wait for no device.
        """
        chosen = torch.as_tensor(rows, device="cpu")
        index = chosen.to(self.input_ids.device, non_blocking=True)
        prompts, completions = self.prompt_lengths[chosen], self.completion_lengths[chosen]
        prompt, completion = int(prompts.max()), max(1, int(completions.max()))
        columns = slice(self.prompt_length - prompt, self.prompt_length + completion)
        return TokenBatch(
            self.input_ids[index, columns],
            self.attention_mask[index, columns],
            self.position_ids[index, columns],
            prompt,
            self.completion_mask[index, :completion],
            prompts,
            completions,
            self.prompt_numbers[chosen],
        )


def build(prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], pad_id: int) -> TokenBatch:
    """One padded batch of B prompts, each at least one token, and their B completions, which may be empty.

    Masks come from lengths: a pad id inside a completion is a token like any other.

    Raises:
        ValueError: no rows, unequal numbers of rows, or an empty prompt (nothing predicts its first token).
    """
    if not prompt_ids or len(prompt_ids) != len(completion_ids):
        raise ValueError(f"{len(prompt_ids)} prompts and {len(completion_ids)} completions make no batch")
    if not all(prompt_ids):
        raise ValueError(f"prompt {[bool(ids) for ids in prompt_ids].index(False)} is empty")
    prompts, prompt_mask = pad_left(prompt_ids, pad_id)
    prompt_lengths = torch.tensor([len(ids) for ids in prompt_ids])
    width = max(1, max(map(len, completion_ids)))
    rows = [[*ids, *[pad_id] * (width - len(ids))] for ids in completion_ids]
    lengths = torch.tensor([len(ids) for ids in completion_ids])
    mask = torch.arange(width) < lengths[:, None]
    attention_mask = torch.cat([prompt_mask, mask.long()], dim=1)
    input_ids = torch.cat([prompts, torch.tensor(rows)], dim=1)
    numbers: dict[tuple[int, ...], int] = {}
    prompt_numbers = torch.tensor([numbers.setdefault(tuple(ids), len(numbers)) for ids in prompt_ids])
    return TokenBatch(
        input_ids,
        attention_mask,
        positions(attention_mask),
        prompts.shape[1],
        mask,
        prompt_lengths,
        lengths,
        prompt_numbers,
    )


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "B P"], Int[Tensor, "B P"]]:
    """Token ids [B, P] and attention mask [B, P], both int64, of lists of unequal lengths."""
    width = max(map(len, rows))
    ids = torch.tensor([[*[pad_id] * (width - len(row)), *row] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(width) >= width - lengths[:, None]).long()


def right_padded(batch: TokenBatch) -> tuple[Tokens, Tokens, Tokens]:
    """Token ids, attention mask and position ids, each [B, S], of the same rows with all padding at their ends."""
    width = batch.input_ids.shape[1]
    shift = (batch.prompt_length - batch.prompt_lengths).to(batch.input_ids.device)
    columns = torch.arange(width, device=shift.device) + shift[:, None]
    there = columns < width
    columns = columns.clamp(max=width - 1)
    mask = batch.attention_mask.gather(1, columns) * there
    return batch.input_ids.gather(1, columns), mask, positions(mask)


def positions(attention_mask: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """[B, S] position ids: 0 on a row's first real token and on the padding before it."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def split_by_rows(batch: TokenBatch, rows: int, packed: bool = False) -> list[Rows]:
    """Row indices in parts of at most ``rows``, longest rows first: alike lengths share little padding.

    Args:
        packed: nothing will be padded, but rows of one prompt that lie in one part compute it once: they stay together.
    """
    return list(_in_order(batch, packed).split(rows))


def split_by_tokens(batch: TokenBatch, tokens: int, packed: bool = False) -> list[Rows]:
    """Row indices in parts whose padded area (rows x longest row) is at most ``tokens``, longest rows first.

    A row that is longer than ``tokens`` makes a part of its own.

    Args:
        packed: as for :func:`split_by_rows`; a part's tokens are then those of its completions, and of each different
            prompt once.
    """
    order = _in_order(batch, packed)
    if packed:
        return _filled(batch, order, tokens)
    return list(order.tensor_split(_cuts(batch.lengths[order].tolist(), tokens)))


def _cuts(widths: list[int], tokens: int) -> list[int]:
    """Where to cut rows of falling ``widths`` so that their padded area is smallest, and a part more saves more than an
    eighth of what a part may hold: a pass costs something, too."""
    best, cut = [0], [0]
    for end in range(1, len(widths) + 1):
        found = []
        for start in range(end - 1, -1, -1):
            area = widths[start] * (end - start)
            if area > tokens and end - start > 1:
                break
            found.append((best[start] + area + tokens // 8, start))
        least, start = min(found)
        best.append(least)
        cut.append(start)
    places, end = [], cut[-1]
    while end > 0:
        places.append(end)
        end = cut[end]
    return places[::-1]


def _filled(batch: TokenBatch, order: PerRow, tokens: int) -> list[Rows]:
    """Rows in ``order``, in parts that compute at most ``tokens`` tokens where each prompt is computed once."""
    known = (batch.prompt_numbers, batch.prompt_lengths, batch.completion_lengths)
    rows = list(zip(*(each.tolist() for each in known), strict=True))
    starts, held, prompts = [0], 0, set[int]()
    for place, row in enumerate(order.tolist()):
        number, prompt, completion = rows[row]
        more = completion + (0 if number in prompts else prompt)
        if place > starts[-1] and held + more > tokens:
            starts.append(place)
            held, prompts, more = 0, set(), completion + prompt
        held += more
        prompts.add(number)
    return list(order.tensor_split(starts[1:]))


def _in_order(batch: TokenBatch, packed: bool) -> PerRow:
    """Rows by falling length; where they are ``packed``, those of one prompt at the place of their longest one."""
    order = batch.lengths.argsort(descending=True, stable=True)
    if not packed:
        return order
    numbers = batch.prompt_numbers
    longest = torch.zeros(int(numbers.max()) + 1, dtype=torch.long)
    longest = longest.scatter_reduce(0, numbers, batch.lengths, "amax")
    order = order[numbers[order].argsort(stable=True)]
    return order[longest[numbers[order]].argsort(descending=True, stable=True)]
