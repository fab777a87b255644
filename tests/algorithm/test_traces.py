import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.algorithm import traces
from app.algorithm.traces import accumulate, decayed_cumsum, mean_weight, weights
from app.errors import ConfigurationError
from tests.algorithm import reference

STYLES = ["recent", "both"]
DECAYS = [0.0, 1e-3, 0.5, 0.98, 0.99, 0.9999, 1 - 1e-9, 1.0]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("q", DECAYS)
@pytest.mark.parametrize("lengths", reference.MASKS)
def test_accumulate_and_weights_equal_the_matrix_forms(lengths: list[int], q: float, style: str) -> None:
    mask = reference.prefix_mask(lengths)
    log_ratio = noise(*mask.shape)
    expected = reference.accumulated(log_ratio, mask, q, style)
    torch.testing.assert_close(accumulate(log_ratio, mask, q, style), expected, rtol=1e-11, atol=1e-11)
    for direction in ("backward", "forward"):
        actual = weights(mask, q, style, direction, torch.float64)
        sums = reference.summed(mask, q, style, direction)
        torch.testing.assert_close(actual, sums, rtol=1e-12, atol=1e-12)
        if direction == "forward":
            mirrored = torch.zeros_like(sums)
            for row, length in enumerate(lengths):
                mirrored[row, :length] = sums[row, :length].flip(0)
            torch.testing.assert_close(weights(mask, q, style, "reverse", torch.float64), mirrored)
        means = sums.sum(1) / mask.sum(1).clamp(min=1)
        torch.testing.assert_close(mean_weight(mask, q, style, direction, torch.float64), means)


cases = st.tuples(
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.integers(0, 5),
    st.one_of(st.sampled_from(DECAYS), st.floats(0, 1)),
    st.sampled_from(STYLES),
    st.integers(0, 2**30),
)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(cases)
def test_any_lengths_and_decay(case: tuple[list[int], int, float, str, int]) -> None:
    lengths, extra, q, style, seed = case
    mask = reference.prefix_mask(lengths, max(lengths) + extra)
    log_ratio = noise(*mask.shape, seed=seed)
    expected = reference.accumulated(log_ratio, mask, q, style)
    torch.testing.assert_close(accumulate(log_ratio, mask, q, style), expected, rtol=1e-11, atol=1e-11)
    omega = weights(mask, q, style, "backward", torch.float64)
    torch.testing.assert_close(omega, accumulate(torch.ones_like(log_ratio), mask, q, style))
    forward = weights(mask, q, style, "forward", torch.float64)
    torch.testing.assert_close((forward * log_ratio).sum(1), expected.sum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("chunk", [2, 3, 16])
def test_the_chunk_changes_nothing(chunk: int, style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks send the scan several levels deep."""
    mask, log_ratio = reference.prefix_mask([100, 31]), noise(2, 100)
    expected = reference.accumulated(log_ratio, mask, 0.97, style)
    monkeypatch.setattr(traces, "CHUNK", chunk)
    torch.testing.assert_close(accumulate(log_ratio, mask, 0.97, style), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("q", [0.99, 0.9999, 1.0])
def test_long_rows_equal_the_recursion(q: float) -> None:
    """T past CHUNK² needs carries of carries."""
    values = noise(20_000)
    expected, trace = [], 0.0
    for value in values.tolist():
        trace = value + q * trace
        expected.append(trace)
    actual = decayed_cumsum(values.unsqueeze(0), q)[0]
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("q", [0.0, 0.98, 0.9999, 1.0])
def test_float32_is_right_to_its_last_digit(q: float, style: str) -> None:
    """``both`` subtracts long sums: done in float32, the digits that remain would be noise."""
    log_ratio = noise(1, 5000, dtype=torch.float32) + 1
    actual = accumulate(log_ratio, torch.ones(1, 5000), q, style)[0]
    positions = torch.arange(5000, dtype=torch.float64)
    for t in (0, 1, 2, 127, 128, 2500, 4998, 4999):
        back = q ** (t - positions[: t + 1])
        row = back if style == "recent" else torch.maximum(back, q ** positions[: t + 1])
        expected = (row * log_ratio[0, : t + 1].double()).sum().item()
        assert actual[t].item() == pytest.approx(expected, rel=1.3e-7)


@pytest.mark.parametrize("style", STYLES)
def test_autocast_changes_no_bit(style: str) -> None:
    log_ratio, mask = noise(2, 300, dtype=torch.float32), torch.ones(2, 300)
    expected = accumulate(log_ratio, mask, 0.99, style)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = accumulate(log_ratio, mask, 0.99, style)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("q", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lengths", [[5, 2, 0], [1], [2], [135, 129]])
def test_gradients(lengths: list[int], q: float, style: str) -> None:
    mask = reference.prefix_mask(lengths)
    log_ratio = noise(*mask.shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: accumulate(x, mask, q, style), (log_ratio,), fast_mode=True)
    (gradient,) = torch.autograd.grad(accumulate(log_ratio, mask, q, style).sum(), log_ratio)
    torch.testing.assert_close(gradient, reference.summed(mask, q, style, "forward"))


@pytest.mark.parametrize("style", STYLES)
def test_masked_entries_influence_nothing(style: str) -> None:
    mask = reference.prefix_mask([150, 3], 200)
    clean = noise(2, 200).where(mask, 0.0)
    dirty = clean.where(mask, torch.nan).requires_grad_()
    actual = accumulate(dirty, mask, 0.99, style)
    assert torch.equal(actual, accumulate(clean, mask, 0.99, style))
    assert (actual[~mask] == 0).all()
    actual.sum().backward()
    assert dirty.grad is not None
    assert (dirty.grad[~mask] == 0).all()
    assert dirty.grad.isfinite().all()


def test_mask_may_be_of_any_dtype() -> None:
    mask, log_ratio = reference.prefix_mask([3, 1]), noise(2, 3, dtype=torch.float32)
    for kind in (torch.int64, torch.float32, torch.bfloat16):
        assert torch.equal(accumulate(log_ratio, mask.to(kind), 0.9, "both"), accumulate(log_ratio, mask, 0.9, "both"))
        assert torch.equal(weights(mask.to(kind), 0.9, "both", "forward"), weights(mask, 0.9, "both", "forward"))


def test_nothing_in_nothing_out() -> None:
    for shape in ((0, 4), (3, 0)):
        assert accumulate(torch.zeros(shape), torch.zeros(shape), 0.9, "both").shape == shape
        assert weights(torch.zeros(shape), 0.9, "both", "forward").shape == shape


def test_closed_forms() -> None:
    """Fact 2 of the method, as it is written there."""
    q, length = 0.97, 40
    mask, k = torch.ones(1, length), torch.arange(length, dtype=torch.float64)
    forward = weights(mask, q, "recent", "forward", torch.float64)[0]
    omega = weights(mask, q, "recent", "backward", torch.float64)[0]
    torch.testing.assert_close(forward, (1 - q ** (length - k)) / (1 - q))
    torch.testing.assert_close(omega, forward.flip(0))
    both = weights(mask, q, "both", "forward", torch.float64)[0]
    shorter = torch.minimum(k + 1, length - k)
    expected = (1 - q**shorter) / (1 - q) + (length - 1 - 2 * k).clamp(min=0) * q**k
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize("style", STYLES)
def test_without_decay_all_tokens_count(style: str) -> None:
    log_ratio, mask = noise(1, 300), torch.ones(1, 300)
    torch.testing.assert_close(accumulate(log_ratio, mask, 1.0, style), log_ratio.cumsum(1))
    assert torch.equal(weights(mask, 1.0, style, "forward")[0], torch.arange(300, 0, -1).float())
    assert torch.equal(weights(mask, 1.0, style, "backward")[0], torch.arange(1, 301).float())


def test_full_decay() -> None:
    """Fact 3: 0⁰ = 1 keeps the first token in every trace of ``both``; ``recent`` keeps none."""
    log_ratio, mask = noise(1, 300, dtype=torch.float32), torch.ones(1, 300)
    assert torch.equal(accumulate(log_ratio, mask, 0.0, "recent"), log_ratio)
    first = log_ratio.double() + torch.nn.functional.pad(log_ratio[:, :1].double().expand(1, 299), (1, 0))
    assert torch.equal(accumulate(log_ratio, mask, 0.0, "both"), first.float())
    assert weights(mask, 0.0, "recent", "forward").tolist() == [[1.0] * 300]
    assert weights(mask, 0.0, "both", "forward").tolist() == [[300.0] + [1.0] * 299]
    assert weights(mask, 0.0, "both", "backward").tolist() == [[1.0] + [2.0] * 299]


@pytest.mark.parametrize(("style", "means"), [("recent", [64, 87, 97]), ("both", [88, 149, 187])])
def test_growth_of_the_policy_term(style: str, means: list[int]) -> None:
    """Fact 5: the mean of W at λ = 0.99 for T = 256, 768 and 3000."""
    for direction in ("forward", "backward"):
        actual = mean_weight(reference.prefix_mask([256, 768, 3000]), 0.99, style, direction)
        assert [round(mean) for mean in actual.tolist()] == means


@pytest.mark.parametrize(("style", "q", "share"), [("recent", 0.99, 0.11), ("both", 0.99, 0.20), ("recent", 0.0, 0.0)])
def test_spread_of_accumulated_ratios(style: str, q: float, share: float) -> None:
    """Fact 6: with token log-ratios of sd 0.02 and T = 256, how many ratios leave [0.8, 1.2]."""
    log_ratio = 0.02 * noise(4000, 256)
    ratio = accumulate(log_ratio, torch.ones(4000, 256), q, style).exp()
    assert ((ratio - 1).abs() > 0.2).double().mean().item() == pytest.approx(share, abs=0.006)


MEMORY_SCRIPT = """
import resource, torch
from app.algorithm.traces import accumulate, weights
def work(length):
    log_ratio = torch.full((8, length), 1e-3, requires_grad=True)
    mask = torch.ones(8, length)
    for style in ("recent", "both"):
        z = accumulate(log_ratio, mask, 0.999, style)
        sums = [weights(mask, 0.999, style, direction) for direction in ("forward", "backward")]
        (z * sums[0] * sums[1]).sum().backward()
work(256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work(32768)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_memory_is_linear_in_length() -> None:
    """A T×T matrix would be 4096 MiB in float32; forward and backward of 8 rows stay below one bit a cell."""
    done = subprocess.run([sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 128


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_decay_outside_the_unit_interval_is_refused(q: float) -> None:
    with pytest.raises(ConfigurationError, match=r"q: must lie in \[0, 1\]"):
        accumulate(torch.zeros(1, 2), torch.ones(1, 2), q, "recent")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="style: unknown name 'resent'; did you mean 'recent'"):
        accumulate(torch.zeros(1, 2), torch.ones(1, 2), 0.9, "resent")
    with pytest.raises(ConfigurationError, match="direction: unknown name 'forwards'; did you mean 'forward'"):
        weights(torch.ones(1, 2), 0.9, "both", "forwards")
