"""Metrics and importance weights against plain loops; every cause of the preflight provoked once."""

import copy
import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from app.engines.engine import SamplingSettings
from app.engines.ranks import RolloutRanks
from app.errors import ConfigurationError
from app.policy.logprobs import token_log_probs
from app.policy.packing import TokenBatch, build
from app.rollout.metric_sums import MetricSums
from app.rollout.mismatch import CorrectionSettings, importance_weights, record_mismatch
from app.rollout.preflight import MismatchError, check_first_rollout, completion_logits
from tests.models import tiny_model
from tests.running import over_ranks

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()


def _log_probs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sampler = -torch.rand(3, 4, generator=generator)
    trainer = sampler + torch.randn(3, 4, generator=generator)
    sampler[~MASK], trainer[~MASK] = torch.nan, 7.0
    return sampler, trainer


def _rows() -> list[list[float]]:
    sampler, trainer = _log_probs()
    return [[float(trainer[b, t]) - float(sampler[b, t]) for t in range(4) if MASK[b, t]] for b in range(3)]


def _recorded(sampler: torch.Tensor, trainer: torch.Tensor, mask: torch.Tensor = MASK) -> MetricSums:
    sums = MetricSums()
    record_mismatch(sums, sampler, trainer, mask)
    return sums


def test_metrics_against_plain_loops() -> None:
    rows = _rows()
    tokens = [d for row in rows for d in row]
    ratios, sequences = [math.exp(d) for d in tokens], [math.exp(sum(row)) for row in rows]
    expected = {
        "sampling_logp_difference/mean": sum(map(abs, tokens)) / 9,
        "sampling_logp_difference/max": max(map(abs, tokens)),
        "kl": sum(math.exp(d) - d - 1 for d in tokens) / 9,
        "token_ratio": sum(ratios) / 9,
        "sequence_ratio": sum(sequences) / 3,
        "token_sample_size": sum(ratios) ** 2 / sum(r * r for r in ratios) / 9,
        "sequence_sample_size": sum(sequences) ** 2 / sum(r * r for r in sequences) / 3,
    }
    expected = {f"sampling/{name}": value for name, value in expected.items()}
    assert over_ranks(_recorded(*_log_probs())) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("first", [1, 2])
def test_ranks_with_other_numbers_of_tokens_give_what_one_process_gives(first: int) -> None:
    sampler, trainer = _log_probs()
    parts = [_recorded(sampler[rows], trainer[rows], MASK[rows]) for rows in (slice(first), slice(first, 3))]
    assert over_ranks(*parts) == pytest.approx(over_ranks(_recorded(sampler, trainer)), rel=1e-12)


def test_sample_sizes_survive_ratios_that_no_float_holds() -> None:
    """Two sequences whose ratios are e^900 and e^900/2: (1 + 1/2)² / (1 + 1/4) / 2."""
    trainer = torch.tensor([[900.0], [900.0 - math.log(2)]])
    ranks = [_recorded(torch.zeros(1, 1), trainer[[row]], torch.ones(1, 1)) for row in (0, 1)]
    assert over_ranks(*ranks)["sampling/sequence_sample_size"] == pytest.approx(0.9, rel=1e-4)


def test_metrics_of_equal_log_probs() -> None:
    sampler, _ = _log_probs()
    metrics = over_ranks(_recorded(sampler, sampler))
    ones = {name for name in metrics if name.endswith(("ratio", "sample_size"))}
    assert len(ones) == 4
    assert metrics == pytest.approx({name: float(name in ones) for name in metrics})


def test_metrics_need_a_token() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        _recorded(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("mode", "lower"), [("truncated", 0.0), ("masked", 0.0), ("masked", 0.7)])
def test_importance_weights_against_plain_loops(mode: str, level: str, lower: float) -> None:
    settings = CorrectionSettings(mode=mode, level=level, upper=1.5, lower=lower)
    weights = importance_weights(*_log_probs(), MASK, settings)
    seen = set()
    for b, row in enumerate(_rows()):
        for t in range(4):
            if not MASK[b, t]:
                assert weights[b, t] == 0
                continue
            ratio = math.exp(sum(row) if level == "sequence" else row[t])
            kept = mode == "truncated" or lower <= ratio <= 1.5
            seen.add(kept if mode == "masked" else ratio > 1.5)
            assert float(weights[b, t]) == pytest.approx(min(ratio, 1.5) if kept else 0.0, rel=1e-5)
    assert seen == {True, False} or level == "sequence"


def test_importance_weights_carry_no_gradient_and_survive_huge_ratios() -> None:
    sampler, trainer = torch.full((1, 3), -400.0), torch.zeros(1, 3, requires_grad=True)
    mask = torch.ones(1, 3)
    for mode, expected in (("truncated", 2.0), ("masked", 0.0)):
        weights = importance_weights(sampler, trainer, mask, CorrectionSettings(mode=mode, level="sequence"))
        assert not weights.requires_grad
        assert weights.tolist() == [[expected] * 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "cut"}, "mode: must be truncated or masked"),
        ({"level": "row"}, "level: must be token or sequence"),
        ({"upper": 0.5}, "upper: must be at least 1"),
        ({"mode": "masked", "lower": 1.5}, "lower: must lie in"),
        ({"lower": 0.5}, "lower: needs mode: masked"),
    ],
)
def test_wrong_corrections_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CorrectionSettings(**settings)


@pytest.fixture(scope="module")
def policy() -> PreTrainedModel:
    return tiny_model(spread=8.0)


PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]] * 3  # more than the check looks at


def _sampled(policy: PreTrainedModel, sampling: SamplingSettings, prompts: list[list[int]] = PROMPTS) -> TokenBatch:
    """Completions of 12 tokens a prompt, drawn by plain forwards."""
    torch.manual_seed(3)
    rows = []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            for _ in range(12):
                filtered = _filtered(policy(ids).logits[0, -1].float(), sampling)
                ids = torch.cat([ids, torch.multinomial(filtered.softmax(-1), 1)[None]], dim=1)
            rows.append(ids[0, len(prompt) :].tolist())
    return build(PROMPTS, rows, 2)


def _filtered(logits: torch.Tensor, sampling: SamplingSettings) -> torch.Tensor:
    logits = logits / sampling.temperature
    ranked, order = logits.sort(dim=-1, descending=True)
    probabilities = ranked.softmax(-1)
    ranked = ranked.masked_fill(probabilities.cumsum(-1) - probabilities >= sampling.top_p, -torch.inf)
    if sampling.top_k:
        ranked[..., sampling.top_k :] = -torch.inf
    return torch.empty_like(logits).scatter_(-1, order, ranked)


def _reported(policy: PreTrainedModel, tokens: TokenBatch, sampling: SamplingSettings) -> torch.Tensor:
    """[B, T] as an engine with these settings reports them."""
    with torch.no_grad():
        filtered = _filtered(completion_logits(policy, tokens), sampling)
    return filtered.log_softmax(-1).gather(-1, tokens.completion_ids[..., None])[..., 0]


def _cause(
    policy: PreTrainedModel,
    tokens: TokenBatch,
    reported: torch.Tensor,
    trainers: SamplingSettings = SamplingSettings(),  # noqa: B008
    limit: float = 0.02,
    **others: object,
) -> str:
    with torch.no_grad():
        own = token_log_probs(policy, tokens, trainers.temperature).log_probs
    with pytest.raises(MismatchError) as raised:
        check_first_rollout(policy, tokens, reported, own, trainers, RolloutRanks(), limit, **others)
    return raised.value.cause


def test_equal_distributions_pass(policy: PreTrainedModel) -> None:
    sampling = SamplingSettings(temperature=0.7)
    tokens = _sampled(policy, sampling)
    own = token_log_probs(policy, tokens, 0.7).log_probs
    assert (
        check_first_rollout(policy, tokens, _reported(policy, tokens, sampling), own, sampling, RolloutRanks()) < 1e-5
    )


@pytest.mark.parametrize(("engines", "trainers"), [(1.0, 0.6), (0.6, 1.0), (0.9, 0.7)])
def test_temperature(policy: PreTrainedModel, engines: float, trainers: float) -> None:
    sampling = SamplingSettings(temperature=engines)
    tokens = _sampled(policy, sampling)
    reported = _reported(policy, tokens, sampling)
    assert _cause(policy, tokens, reported, SamplingSettings(temperature=trainers)) == "temperature"


@pytest.mark.parametrize("sampling", [SamplingSettings(top_p=0.8), SamplingSettings(top_k=5)], ids=["top-p", "top-k"])
@pytest.mark.parametrize("told", [True, False])
def test_truncation(policy: PreTrainedModel, sampling: SamplingSettings, told: bool) -> None:
    tokens = _sampled(policy, sampling)
    reported = _reported(policy, tokens, sampling)
    assert _cause(policy, tokens, reported, sampling if told else SamplingSettings()) == "top-p/top-k"


@pytest.mark.parametrize("sampling", [SamplingSettings(top_p=0.8), SamplingSettings(top_k=5)], ids=["top-p", "top-k"])
def test_truncation_passes_where_the_run_corrects_for_it_as_the_advice_says(
    policy: PreTrainedModel, sampling: SamplingSettings, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = _sampled(policy, sampling)
    with torch.no_grad():
        own = token_log_probs(policy, tokens).log_probs
    given = (policy, tokens, _reported(policy, tokens, sampling), own, sampling, RolloutRanks())
    with pytest.raises(MismatchError, match=r"or correct for it .*\(rollouts.mismatch.correction: \{\}\)"):
        check_first_rollout(*given)
    assert check_first_rollout(*given, corrected=True) > 0.02
    assert "top-p/top-k, which rollouts.mismatch.correction corrects" in caplog.text


def test_ids_that_the_engine_never_draws(policy: PreTrainedModel) -> None:
    """Half of the vocabulary."""
    rows = torch.randint(36, (len(PROMPTS), 12), generator=torch.Generator().manual_seed(0)).tolist()
    tokens, forbidden = build(PROMPTS, rows, 2), range(36, 72)
    with torch.no_grad():
        left = completion_logits(policy, tokens).index_fill(-1, torch.tensor(forbidden), -torch.inf)
    reported = left.log_softmax(-1).gather(-1, tokens.completion_ids[..., None])[..., 0]
    sampling = SamplingSettings(forbid_unknown_tokens=True)
    assert _cause(policy, tokens, reported, sampling, forbidden=forbidden) == "unknown tokens"


def test_importance_weights_do_not_excuse_another_cause(policy: PreTrainedModel) -> None:
    sampling = SamplingSettings(temperature=0.6)
    tokens = _sampled(policy, sampling)
    assert _cause(policy, tokens, _reported(policy, tokens, sampling), corrected=True) == "temperature"


def test_dtype(policy: PreTrainedModel) -> None:
    """Weights rounded to bfloat16, computed in float32: noise of that size, but not the probe's very own."""
    engine = copy.deepcopy(policy).to(torch.bfloat16).float()
    tokens = _sampled(engine, SamplingSettings())
    reported = _reported(engine, tokens, SamplingSettings())
    assert _cause(policy, tokens, reported, limit=1e-3) == "dtype"
    with torch.no_grad():
        own = token_log_probs(policy, tokens).log_probs
    assert check_first_rollout(policy, tokens, reported, own, SamplingSettings(), RolloutRanks(), 1e-3, corrected=True)


def test_tied_head(policy: PreTrainedModel) -> None:
    engine = copy.deepcopy(policy)
    engine.lm_head.weight = torch.nn.Parameter(torch.empty_like(policy.lm_head.weight).uniform_(-1e-3, 1e-3))
    tokens = _sampled(engine, SamplingSettings())
    assert _cause(policy, tokens, _reported(engine, tokens, SamplingSettings())) == "tied head"


def test_stale_weights(policy: PreTrainedModel) -> None:
    old = tiny_model(seed=5, spread=8.0)
    tokens = _sampled(old, SamplingSettings())
    assert _cause(policy, tokens, _reported(old, tokens, SamplingSettings()), old_policy=old) == "stale weights"


def test_chat_template(policy: PreTrainedModel) -> None:
    templated = [[20, *prompt, 21, 22] for prompt in PROMPTS]
    tokens = _sampled(policy, SamplingSettings(), templated)
    others = build(templated, tokens.completion_ids.tolist(), 2)
    reported = _reported(policy, others, SamplingSettings())
    assert _cause(policy, tokens, reported, other_prompts=others) == "chat template"


def _long(policy: PreTrainedModel, rows: int = 10, tokens: int = 200) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    completions = torch.randint(3, 72, (rows, tokens), generator=generator).tolist()
    return build([[5, 6, 7]] * rows, [ids[: tokens - 7 * row] for row, ids in enumerate(completions)], 2)


def test_a_cause_that_acts_late_is_found(policy: PreTrainedModel) -> None:
    tokens = _long(policy)
    reported = _reported(policy, tokens, SamplingSettings())
    other = _reported(policy, tokens, SamplingSettings(temperature=0.6))
    reported[:, 120:] = other[:, 120:]
    assert _cause(policy, tokens, reported) == "temperature"
    with torch.no_grad():
        own = token_log_probs(policy, tokens).log_probs
    reported[:8] = own[:8]
    assert check_first_rollout(policy, tokens, reported, own, SamplingSettings(), RolloutRanks()) == 0


class Live(TorchDispatchMode):
    """The most bytes that tensors as wide as the vocabulary held at once."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.peak = vocab, 0
        self._made: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._made += [weakref.ref(each) for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
        alive = [each for ref in self._made if (each := ref()) is not None]
        self._made = [weakref.ref(each) for each in alive]
        wide = [each.untyped_storage() for each in alive if each.dim() > 2 and each.shape[-1] == self.vocab]
        self.peak = max(self.peak, sum({each.data_ptr(): each.nbytes() for each in wide}.values()))
        return made


def test_the_diagnosis_holds_whole_distributions_of_a_few_tokens_alone(policy: PreTrainedModel) -> None:
    """On all of the rows compared, it would run out of memory instead of naming the cause."""
    tokens = _long(policy)
    reported = _reported(policy, tokens, SamplingSettings(temperature=0.6))
    with torch.no_grad():
        own = token_log_probs(policy, tokens).log_probs
    with Live(72) as live, pytest.raises(MismatchError):
        check_first_rollout(
            policy, tokens, reported, own, SamplingSettings(), RolloutRanks(), old_policy=policy, other_prompts=tokens
        )
    assert 0 < live.peak <= 40 * 2 * 64 * 72


def test_the_rank_that_differs_most_names_the_cause_on_all(policy: PreTrainedModel) -> None:
    """Ranks call collectives equally often, also one whose own rows agree."""
    tokens, meeting, posted = _long(policy), threading.Barrier(2, timeout=60), [[], []]
    own = _reported(policy, tokens, SamplingSettings())
    hotter = _reported(policy, tokens, SamplingSettings(temperature=1.6))

    class Rank(RolloutRanks):
        def gathered(self, values: list[Any]) -> tuple[list[Any], slice]:
            posted[self.rank] = values
            meeting.wait()
            both = [*posted[0], *posted[1]]
            meeting.wait()
            return both, slice(self.rank, self.rank + 1)

    def check(rank: int) -> str:
        here = Rank()
        here.rank, here.size = rank, 2
        with pytest.raises(MismatchError) as raised:
            check_first_rollout(policy, tokens, hotter if rank else own, own, SamplingSettings(), here)
        return str(raised.value)

    with ThreadPoolExecutor(2) as pool:
        messages = list(pool.map(check, range(2)))
    assert messages[0] == messages[1]
    assert "Likely cause: temperature" in messages[0]


def test_what_nothing_explains_is_called_unknown(policy: PreTrainedModel) -> None:
    tokens = _sampled(policy, SamplingSettings())
    reported = _reported(policy, tokens, SamplingSettings()) - 3 * torch.rand(12, 12).round()
    assert _cause(policy, tokens, reported) == "unknown"
