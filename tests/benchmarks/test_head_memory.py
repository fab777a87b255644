"""What is counted as held: the tensors that are there at once, and of log-probs what the arithmetic says."""

import pytest
import torch

from app.policy import head_log_probs
from benchmarks.allocations import Allocated
from benchmarks.head_memory import held_bytes


def test_the_most_that_is_held_at_once_is_counted() -> None:
    known = torch.zeros(1000)
    with Allocated([known]) as made:
        kept = known[10:] + 1
        for _ in range(3):
            torch.cat([kept, kept]).sum()
        known.view(10, 100).add_(1)
    assert made.largest == 2 * kept.nbytes
    assert made.peak == 3 * kept.nbytes + 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_logits_and_their_gradient_are_what_hidden_states_save(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_log_probs, "TILE_ELEMENTS", 2**14)
    hidden, weight = (torch.randn(count, 8).to(dtype).requires_grad_() for count in (300, 5000))
    held = held_bytes(hidden, weight)
    assert held["from logits"] >= 2 * 300 * 5000 * dtype.itemsize
    assert held["from hidden states"] < head_log_probs.TILES * 4 * 2**14 + 300 * (4 * 8 + 100)
