"""Padding, trimming and splitting of ragged rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.policy.packing import build, pad_left, split_by_rows, split_by_tokens

PAD = 0
ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.lists(st.integers(0, 9), min_size=0, max_size=7)),
    min_size=1,
    max_size=6,
)


def unpad(batch):
    """What went in, read back from ids and masks alone."""
    width = batch.prompt_length
    prompts = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch.input_ids[:, :width], batch.attention_mask[:, :width], strict=True)
    ]
    pairs = zip(batch.completion_ids, batch.completion_mask, strict=True)
    return list(zip(prompts, [ids[mask].tolist() for ids, mask in pairs], strict=True))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(ROWS)
def test_rows_survive_padding_even_where_they_contain_the_pad_id(rows):
    batch = build([prompt for prompt, _ in rows], [completion for _, completion in rows], PAD)
    assert unpad(batch) == rows
    assert batch.lengths.tolist() == [len(prompt) + len(completion) for prompt, completion in rows]
    assert torch.equal(batch.attention_mask[:, batch.prompt_length :].bool(), batch.completion_mask)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(ROWS, st.data())
def test_a_selection_is_the_batch_of_those_rows_alone(rows, data):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
    part = build([p for p, _ in rows], [c for _, c in rows], PAD).select(chosen)
    alone = build([rows[i][0] for i in chosen], [rows[i][1] for i in chosen], PAD)
    assert part.prompt_length == alone.prompt_length
    for name in ("input_ids", "attention_mask", "position_ids", "completion_ids", "completion_mask", "lengths"):
        assert torch.equal(getattr(part, name), getattr(alone, name)), name


def test_layout_of_a_small_batch():
    batch = build([[5], [6, 7, 8]], [[1, 2], [3]], PAD)
    assert batch.input_ids.tolist() == [[0, 0, 5, 1, 2], [6, 7, 8, 3, 0]]
    assert batch.attention_mask.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch.position_ids.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]
    assert batch.completion_ids.tolist() == [[1, 2], [3, 0]]


def test_moves_keep_everything():
    batch = build([[5], [6, 7]], [[1], [2]], PAD)
    moved = batch.to("meta")
    assert {moved.input_ids.device.type, moved.completion_mask.device.type} == {"meta"}
    assert moved.prompt_length == 2
    assert len(moved) == 2


def test_widths_and_order_are_known_without_reading_a_device():
    """The meta device stands for a GPU: to read a value there is an error, as on a GPU it is to wait for its queue."""
    batch = build([[5], [6, 7, 8], [9, 9]], [[1, 2], [3], []], PAD)
    far = batch.to("meta")
    for rows in ([2], [0, 2], torch.tensor([1, 0])):
        near, part = batch.select(rows), far.select(rows)
        assert part.input_ids.is_meta
        assert part.prompt_length == near.prompt_length
        for name in ("input_ids", "attention_mask", "position_ids", "completion_ids", "completion_mask"):
            assert getattr(part, name).shape == getattr(near, name).shape, name
        assert part.select([0]).lengths.tolist() == near.lengths[:1].tolist()
    for split in (split_by_rows, split_by_tokens):
        assert [part.tolist() for part in split(far, 2)] == [part.tolist() for part in split(batch, 2)]


@pytest.mark.parametrize(
    ("prompts", "completions"), [([], []), ([[1]], []), ([[1], []], [[1], [2]])], ids=["none", "unequal", "empty"]
)
def test_what_makes_no_batch_is_refused(prompts, completions):
    with pytest.raises(ValueError, match=r"make no batch|prompt 1 is empty"):
        build(prompts, completions, PAD)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 4), st.integers(1, 40))
def test_parts_hold_every_row_once_within_their_budget(rows, row_budget, token_budget):
    batch = build([p for p, _ in rows], [c for _, c in rows], PAD)
    everything = list(range(len(rows)))
    by_rows, by_tokens = split_by_rows(batch, row_budget), split_by_tokens(batch, token_budget)
    assert sorted(torch.cat(by_rows).tolist()) == everything == sorted(torch.cat(by_tokens).tolist())
    assert all(len(part) <= row_budget for part in by_rows)
    for part in by_tokens:
        assert len(part) == 1 or len(part) * int(batch.lengths[part].max()) <= token_budget
    order = batch.lengths[torch.cat(by_tokens)].tolist()
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize(("rows", "most"), [(128, 0.1), (512, 0.04)])
def test_log_normal_lengths_leave_little_padding(rows, most):
    """Of rows that are padded, with a median of 600 tokens and passes of 16,384; packed ones have none."""
    lengths = (6.0 + 0.8 * torch.randn(rows, generator=torch.Generator().manual_seed(0))).exp().long().clamp(1, 8192)
    batch = build([[7] * 200] * rows, [[3] * length for length in lengths.tolist()], PAD)
    parts = split_by_tokens(batch, 16384)
    area = sum(len(part) * int(batch.lengths[part].max()) for part in parts)
    assert 1 - int(batch.lengths.sum()) / area <= most
    assert len(parts) <= 1.6 * area / 16384  # and not by passes of a row each


def test_prompts_are_padded_on_the_left():
    ids, mask = pad_left([[1, 2, 3], [4]], 9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
