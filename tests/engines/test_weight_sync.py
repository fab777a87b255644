"""Fingerprints that notice one changed bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engines.weight_sync import (
    COLUMNS,
    MODULUS,
    SyncRecord,
    WeightSyncError,
    fingerprint,
    sampled_columns,
    sum_of_shards,
    whole_fingerprint,
)
from app.policy.sharding.merging import policy_weights
from tests.models import tiny_model


def test_every_column_is_compared_in_turn() -> None:
    for width in (1, 7, COLUMNS, COLUMNS + 1, 3 * COLUMNS - 5, 1000):
        rounds = -(-width // COLUMNS)
        seen = torch.cat([sampled_columns(width, number) for number in range(rounds)]).tolist()
        assert sorted(seen) == list(range(width))
        assert all(0 < len(sampled_columns(width, number)) <= COLUMNS for number in range(rounds))
        assert sampled_columns(width, rounds).tolist() == sampled_columns(width, 0).tolist()


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    element=st.integers(0, 80),
    bit=st.integers(0, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_one_bit_changes_the_fingerprint(shape: tuple[int, int], element: int, bit: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    changed = tensor.clone()
    integers = changed.view(torch.int32 if dtype == torch.float32 else torch.int16).view(-1)
    integers[element % len(integers)] ^= 1 << (bit if dtype == torch.float32 else bit % 15)
    if changed.isnan().any():  # arithmetic may rewrite the bits of a NaN
        return
    assert whole_fingerprint(tensor, 0) != whole_fingerprint(changed, 0)


def test_places_count_signs_of_zero_do_not() -> None:
    tensor = torch.arange(12.0).view(3, 4)
    assert whole_fingerprint(tensor, 0) != whole_fingerprint(tensor.flip(0), 0)
    assert whole_fingerprint(tensor, 0) != whole_fingerprint(tensor.flip(1), 0)
    assert whole_fingerprint(torch.zeros(3), 0) == whole_fingerprint(-torch.zeros(3), 0)


@given(rows=st.integers(1, 8), width=st.integers(1, 150), cut=st.integers(0, 8), number=st.integers(0, 3))
def test_shards_add_up(rows: int, width: int, cut: int, number: int) -> None:
    """Two workers that share the rows, and two that share the columns, give the whole tensor's fingerprint."""
    tensor = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    columns = sampled_columns(width, number)
    whole = {"w": whole_fingerprint(tensor, number)}
    row = min(cut, rows)
    values = tensor[:, columns]
    upper = {"w": fingerprint(values[:row], columns, width)}
    lower = {"w": fingerprint(values[row:], columns, width, first_row=row)}
    assert sum_of_shards([upper, lower]) == whole
    left = columns < width // 2
    parts = [{"w": fingerprint(values[:, part], columns[part], width)} for part in (left, ~left)]
    assert sum_of_shards(parts) == whole


def test_a_record_names_what_differs_and_what_is_absent() -> None:
    policy = tiny_model("llama")
    record = SyncRecord(torch.bfloat16, 3)
    passed = dict(record.watch(policy_weights(policy)))
    assert passed.keys() == record.sent.keys() == record.widths.keys()
    rounded = {name: whole_fingerprint(tensor.bfloat16(), 3) for name, tensor in passed.items()}
    record.check(rounded)
    record.check({name: value - MODULUS for name, value in rounded.items()})
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(WeightSyncError, match=f"differ in {name}: ") as raised:
        record.check(rounded | {name: rounded[name] + 1})
    assert (raised.value.differ, raised.value.absent) == ([name], [])
    rounded.pop(name)
    with pytest.raises(WeightSyncError, match=f"lack {name}: "):
        record.check(rounded)
