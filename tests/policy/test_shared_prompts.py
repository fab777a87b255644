"""Packed rows, whose prompts are computed once, against rows that are padded and each by itself."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from app.policy.dropout import switch_off_dropout
from app.policy.logprobs import token_log_probs
from app.policy.lora import LoraSettings, WithoutAdapters, add_adapters
from app.policy.packed_rows import ATTENTION, PackedRows, attention_of, packed_tokens
from app.policy.packing import TokenBatch, build, split_by_rows, split_by_tokens
from app.policy.packing_probe import PackingProbe, share_packing
from app.policy.probe import TrainingProbe
from app.policy.shared_prompts import Work, packed_log_probs, packs, packs_rows, row_statistics, work_of
from tests.families import family_policy, tokenizer
from tests.models import tiny_model

CPU = torch.device("cpu")
IDS = range(3, 70)
GROUPS = [(list(range(5, 10)), [4, 0, 12, 1]), (list(range(20, 29)), [7, 30]), ([40, 41], [3])]
"""(prompt, lengths of its completions)."""


def batch_of(groups: list[tuple[list[int], list[int]]] = GROUPS) -> TokenBatch:
    rows = [(prompt, length) for prompt, lengths in groups for length in lengths]
    completions = [[IDS[(7 * row + 3 * t) % len(IDS)] for t in range(length)] for row, (_, length) in enumerate(rows)]
    return build([prompt for prompt, _ in rows], completions, pad_id=0)


def packing(model: PreTrainedModel) -> PreTrainedModel:
    assert PackingProbe(tokenizer(), model.dtype, CPU).try_on(model) is None
    return model


def gradients(model: PreTrainedModel, batch: TokenBatch, evaluate: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Statistics, and gradients of a sum that weighs every log-prob and entropy differently."""
    model.zero_grad()
    found = evaluate(model, batch, 0.8, entropy_gradient=True)
    weights = torch.randn(found.log_probs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (found.log_probs * weights + found.entropy * weights.flip(1)).sum().backward()
    return found, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


KINDS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "gemma3_text": {"sliding_window": 5},  # layers with a window that ends within rows, and layers without one
    "qwen3_moe": {},
    "deepseek_v3": {},  # keys and values of unequal sizes
    "gpt_neox": {},
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_gradients_are_those_of_padded_rows(kind: str, checkpointing: bool) -> None:
    model, batch = packing(tiny_model(kind, **KINDS[kind])), batch_of()
    plain, wanted = gradients(model, batch, token_log_probs)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    packed, found = gradients(model, batch, packed_log_probs)
    torch.testing.assert_close(packed.log_probs, plain.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.entropy, plain.entropy, atol=1e-5, rtol=0)
    assert_same_gradients(found, wanted)


def assert_same_gradients(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """To 1e-5 of the largest one in their tensor."""
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max())), rtol=0)


ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=9)
SMALL = packing(tiny_model("gemma3_text", sliding_window=3).double())


@settings(derandomize=True, max_examples=40, deadline=None)
@given(ROWS)
def test_any_rows_in_any_order(rows: list[tuple[int, int]]) -> None:
    """Arbitrary rows of groups, also of prompts that begin alike, and rows without a completion."""
    prompts = [[5], [5, 6, 7, 8], [9, 8, 7]]
    completions = [[IDS[(5 * row + t) % len(IDS)] for t in range(length)] for row, (_, length) in enumerate(rows)]
    batch = build([prompts[number] for number, _ in rows], completions, pad_id=0)
    with torch.no_grad():
        wanted = token_log_probs(SMALL, batch, with_entropy=True)
        found = packed_log_probs(SMALL, batch, with_entropy=True)
    torch.testing.assert_close(found.log_probs, wanted.log_probs, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.entropy, wanted.entropy, atol=1e-9, rtol=0)


def test_layout_of_a_small_batch() -> None:
    """Two rows of the prompt 5 6, one of the prompt 7; last tokens are left out."""
    rows = PackedRows(build([[5, 6], [7], [5, 6]], [[10, 11, 12], [20, 21], [30]], pad_id=0))
    assert rows.input_ids.tolist() == [[5, 6, 7, 10, 11, 20]]
    assert rows.position_ids.tolist() == [[0, 1, 0, 2, 3, 1]]
    assert rows.prompt_of_row.tolist() == [0, 1, 0]
    assert rows.last_of_prompt.tolist() == [1, 2]
    assert [block.rows.tolist() for block in rows.blocks] == [[0, 1]]
    values = torch.arange(6.0)[:, None]
    assert rows.predicting(values).flatten().tolist() == [1, 2, 1, 3, 4, 5]
    assert rows.slots[rows.slot_of_token].tolist() == list(range(6))


def test_what_is_computed_is_counted() -> None:
    model = packing(tiny_model())
    shared = build([[5, 6, 7]] * 3, [[1], [1, 2, 3], [1, 2]], pad_id=0)
    assert packed_tokens(shared) == 3 + 0 + 2 + 1
    assert work_of(model, shared) == Work(computed=6, padding=0, shared=6)
    alone = build([[5, 6, 7], [8, 9]], [[1, 2], [1, 2]], pad_id=0)
    assert work_of(tiny_model(), alone) == Work(computed=8, padding=1, shared=0)
    assert work_of(tiny_model(), shared) == Work(computed=15, padding=1, shared=0)


def test_rows_are_packed_where_that_saves_a_tenth() -> None:
    model = packing(tiny_model())
    alike = [(list(range(number, number + 8)), [10]) for number in range(3, 60, 9)]
    for groups, expected in ((alike, False), ([*alike, (list(range(60, 68)), [10, 10])], False), (GROUPS, True)):
        batch = batch_of(groups)
        assert packs(model, batch) == expected
        assert packs(model, batch) == (packed_tokens(batch) <= 0.9 * len(batch) * (batch.input_ids.shape[1] - 1))
    assert not packs(tiny_model(), batch_of())  # never probed
    assert not packs(model, build([[5, 6]] * 4, [[]] * 4, pad_id=0))


def test_adapters_and_the_reference_behind_them() -> None:
    policy = add_adapters(tiny_model().double(), LoraSettings(), seed=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.add_(0.05)
    reference, batch = WithoutAdapters(packing(policy)), batch_of()
    share_packing(policy, reference)
    with torch.no_grad():
        for model in (policy, reference):
            wanted = token_log_probs(model, batch).log_probs
            assert packs(model, batch)
            torch.testing.assert_close(row_statistics(model, batch).log_probs, wanted, atol=1e-9, rtol=0)
    _, wanted_gradients = gradients(policy, batch, token_log_probs)
    _, found = gradients(policy, batch, packed_log_probs)
    assert_same_gradients(found, wanted_gradients)


# ── micro-batches ──


@settings(derandomize=True, max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 4), st.integers(1, 30))
def test_parts_hold_every_row_once_within_their_budget(rows: list[tuple[int, int]], count: int, tokens: int) -> None:
    batch = build([[4] * (1 + 3 * number) for number, _ in rows], [[1] * length for _, length in rows], pad_id=0)
    by_rows, by_tokens = split_by_rows(batch, count, packed=True), split_by_tokens(batch, tokens, packed=True)
    everything = list(range(len(rows)))
    assert sorted(torch.cat(by_rows).tolist()) == everything == sorted(torch.cat(by_tokens).tolist())
    assert all(len(part) <= count for part in by_rows)
    for part in by_tokens:
        prompts = {int(batch.prompt_numbers[row]): int(batch.prompt_lengths[row]) for row in part}
        held = sum(prompts.values()) + int(batch.completion_lengths[part].sum())
        assert len(part) == 1 or held <= tokens
    for parts in (by_rows, by_tokens):  # a prompt's rows are neighbours
        numbers = batch.prompt_numbers[torch.cat(parts)].tolist()
        changes = sum(one != other for one, other in itertools.pairwise(numbers))
        assert changes == len(set(numbers)) - 1


def test_budgets_hold_more_rows_where_prompts_are_shared() -> None:
    batch = build([[number] * 50 for number in range(1, 5) for _ in range(4)], [[1] * 10] * 16, pad_id=0)
    assert sorted(len(part) for part in split_by_tokens(batch, 180)) == [1, 3, 3, 3, 3, 3]
    assert [len(part) for part in split_by_tokens(batch, 180, packed=True)] == [8, 8]


# ── what the probe finds ──


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mamba2", "carry a state"),
        ("falcon_h1", "carry a state"),
        ("rwkv", "padding must not come before"),
        ("bloom", "attention .* is not one that transformers calls as sdpa"),
        ("gpt_oss", "attention .eager. is not"),
        ("llama4_text", "counts positions by itself"),
        ("hrm_text", "log-probs would differ by"),  # its loops make more of rounding
    ],
)
def test_families_that_cannot_stay_as_they_are(kind: str, reason: str) -> None:
    policy = family_policy(kind)
    switch_off_dropout(policy)
    TrainingProbe(tokenizer(), torch.float32, CPU).check(policy)
    attention = policy.config._attn_implementation
    found = PackingProbe(tokenizer(), torch.float32, CPU).try_on(policy)
    assert found is not None
    assert re.search(reason, found)
    assert not packs_rows(policy)
    assert policy.config._attn_implementation == attention


def test_a_model_whose_layers_see_neighbours_is_found_out() -> None:
    """Right of each row alone, and wrong where another row lies before it."""
    policy = family_policy("llama")
    shift = lambda module, given, made: made + torch.nn.functional.pad(made, (0, 0, 1, 0))[:, :-1]  # noqa: E731
    policy.model.layers[0].mlp.register_forward_hook(shift)
    TrainingProbe(tokenizer(), torch.float32, CPU, layouts=("right",)).check(policy)
    policy.pads_on_right = False
    reason = PackingProbe(tokenizer(), torch.float32, CPU).try_on(policy)
    assert reason is not None
    assert "would differ by" in reason
    assert policy.config._attn_implementation == "sdpa"
    assert not packs_rows(policy)


def test_what_raises_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = family_policy("llama")
    monkeypatch.setattr(PackedRows, "predicting", lambda *_: 1 / torch.zeros(()).log())
    reason = PackingProbe(tokenizer(), torch.float32, CPU).try_on(policy)
    assert reason is not None
    assert policy.config._attn_implementation == "sdpa"


def test_the_attention_keeps_its_name_and_leaves_no_trace_in_files(tmp_path: Path) -> None:
    policy = packing(tiny_model())
    assert policy.config._attn_implementation == ATTENTION
    assert attention_of(policy) == "sdpa"
    policy.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
