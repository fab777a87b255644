"""The real vLLM engine in this process: contract, distribution, weights and side effects."""

import copy
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from peft import LoraConfig, get_peft_model

from app.engines.vllm.colocated import Colocated
from app.engines.vllm.engine import VLLMEngine
from app.engines.weight_sync import WeightSyncError, as_matrix, sampled_columns
from app.errors import ConfigurationError
from app.policy.sharding.merging import policy_weights
from tests.engines.vllm.support import (
    END,
    UNKNOWN,
    VOCAB,
    Owner,
    owner,
    perturb,
    processed_log_probs,
    request,
    word_tokenizer,
    worst_difference,
)

pytest.importorskip("vllm", reason="vLLM is optional: make setup-vllm")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def module() -> Owner:
    made = owner()
    return Owner(made.policy, word_tokenizer(unknown=UNKNOWN))


@pytest.fixture(scope="module")
def started(module: Owner) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(kv_cache_gib=0.25)
    engine.start(module)
    yield engine
    engine.close()
    engine.close()


@pytest.fixture
def engine(started: VLLMEngine, module: Owner) -> VLLMEngine:
    started.sync(module)
    return started


def test_the_file_by_which_its_ranks_meet_lies_in_a_folder_that_the_next_start_clears(engine: VLLMEngine) -> None:
    backend = engine._backend
    assert isinstance(backend, Colocated)
    assert list(backend.engine._scratch.path.glob("vllm_dist_*"))
    assert not [folder for folder in backend.engine._scratch.path.parent.glob("vllm-model-*") if is_held(folder)]


def is_held(folder: Path) -> bool:
    """By this process; others may have engines, too."""
    return f"process {os.getpid()} on" in (folder / ".lock").read_text()


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.6},
        {"top_p": 0.7},
        {"top_k": 5},
        {"top_k": 12, "top_p": 0.8, "temperature": 1.3},
        {"min_p": 0.2},
        {"temperature": 0},
    ],
    ids=str,
)
def test_log_probs_are_those_of_the_distribution_sampled_from(
    engine: VLLMEngine, module: Owner, sampling: dict[str, float]
) -> None:
    asked = request(n=6, **sampling)
    completions = engine.generate([asked])[0]
    assert len(completions) == 6
    assert worst_difference(module.policy, asked, completions) < 1e-5


def test_more_prompt_tokens_than_one_step_of_vllm_takes_by_default(engine: VLLMEngine, module: Owner) -> None:
    """Prompts that were cut into chunks made seeded sampling on a CPU fail."""
    asked = [request(prompt=[1 + (3 * index + place) % 40 for place in range(50)], seed=index) for index in range(120)]
    answers = engine.generate(asked)
    assert max(worst_difference(module.policy, *pair) for pair in zip(asked, answers, strict=True)) < 1e-5


def test_greedy_requests_beside_sampled_ones(engine: VLLMEngine, module: Owner) -> None:
    greedy, sampled = request(temperature=0, n=2), request(temperature=0.8, top_p=0.9)
    answers = engine.generate([greedy, sampled])
    for asked, completions in zip((greedy, sampled), answers, strict=True):
        assert worst_difference(module.policy, asked, completions) < 1e-5
    best = processed_log_probs(module.policy, greedy, answers[0][0].token_ids).argmax(-1)
    assert best.tolist() == answers[0][0].token_ids == answers[0][1].token_ids


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.8}], ids=str)
def test_frequencies_of_first_and_second_tokens_are_the_policys(
    engine: VLLMEngine, module: Owner, sampling: dict[str, float]
) -> None:
    """Chi-square over 6000 samples; the seeds are fixed, so it either holds or not."""
    asked = request(n=6000, max_new_tokens=2, end=(), **sampling)
    completions = engine.generate([asked])[0]
    first = processed_log_probs(module.policy, asked, [0])[0].exp()
    assert _chi_square(Counter(row.token_ids[0] for row in completions), first, 6000) < 4
    likeliest = int(first.argmax())
    seconds = Counter(row.token_ids[1] for row in completions if row.token_ids[0] == likeliest)
    second = processed_log_probs(module.policy, asked, [likeliest, 0])[1].exp()
    assert _chi_square(seconds, second, sum(seconds.values())) < 4


def _chi_square(counts: Counter[int], probabilities: torch.Tensor, total: int) -> float:
    """How many standard deviations chi-square lies above its mean; cells of fewer than 5 are put together."""
    expected = probabilities * total
    assert all(expected[token] > 0 for token in counts), "a token of probability 0 was drawn"
    common = [token for token in range(VOCAB) if expected[token] >= 5]
    rest = total - sum(counts[token] for token in common), total - float(expected[common].sum())
    cells = [(counts[token], float(expected[token])) for token in common] + ([rest] if rest[1] >= 1 else [])
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in cells)
    freedom = len(cells) - 1
    assert freedom >= 3
    return (statistic - freedom) / (2 * freedom) ** 0.5


def test_a_completion_depends_on_its_seed_and_number_alone(engine: VLLMEngine) -> None:
    asked, other = request(n=6), request((9, 9, 4), n=3, seed=12)
    together = engine.generate([other, asked])
    alone = engine.generate([request(n=2)])
    assert [row.token_ids for row in together[1][:2]] == [row.token_ids for row in alone[0]]
    assert engine.generate([other, asked]) == together
    assert len({tuple(row.token_ids) for row in together[1]}) == 6
    assert [row.token_ids for row in engine.generate([request(n=6, seed=13)])[0]] != together[1]


def test_end_tokens_are_kept_and_end_with_stop(engine: VLLMEngine) -> None:
    rows = engine.generate([request(n=64)])[0]
    reasons = Counter(row.finish_reason for row in rows)
    assert set(reasons) == {"stop", "length"}
    for row in rows:
        assert len(row.token_ids) == len(row.log_probs) >= 1
        ended = row.token_ids[-1] in END
        assert ended == (row.finish_reason == "stop")
        assert ended or len(row.token_ids) == 16
        assert not set(row.token_ids[:-1]) & set(END)


def test_eos_of_the_tokenizer_alone_ends_nothing(engine: VLLMEngine) -> None:
    rows = engine.generate([request(n=64, end=())])[0]
    assert any(1 in row.token_ids[:-1] for row in rows)
    assert {row.finish_reason for row in rows} == {"length"}


def test_the_token_that_completes_a_stop_string_is_kept(engine: VLLMEngine) -> None:
    rows = engine.generate([request(n=32, end=(), stop_strings=("w6",))])[0]
    stopped = [row for row in rows if row.finish_reason == "stop"]
    assert stopped
    for row in rows:
        found = [token == 6 or 60 <= token <= 69 for token in row.token_ids]
        assert any(found[:-1]) is False
        assert found[-1] == (row.finish_reason == "stop")


def test_a_special_token_completes_a_stop_string(engine: VLLMEngine, module: Owner) -> None:
    assert 2 in module.tokenizer.all_special_ids
    rows = engine.generate([request(n=64, end=(), temperature=2.0, stop_strings=("w2",))])[0]
    assert {row.finish_reason for row in rows if row.token_ids[-1] == 2} == {"stop"}
    assert not any(2 in row.token_ids[:-1] for row in rows)


@pytest.mark.parametrize("temperature", [2.0, 0.0])
def test_an_id_that_the_tokenizer_does_not_know_may_be_forbidden(
    engine: VLLMEngine, module: Owner, temperature: float
) -> None:
    free, bound = (
        request(n=64, end=(), temperature=temperature, forbid_unknown_tokens=forbidden) for forbidden in (False, True)
    )
    groups = engine.generate([free, bound])
    assert any(UNKNOWN in row.token_ids for row in groups[0]) == (temperature > 0)
    assert not any(UNKNOWN in row.token_ids for row in groups[1])
    for asked, rows in zip((free, bound), groups, strict=True):
        assert worst_difference(module.policy, asked, rows) < 1e-5


def test_no_requests_and_wrong_requests(engine: VLLMEngine) -> None:
    assert engine.generate([]) == []
    for wrong, message in [
        (request(()), "empty"),
        (request((5, VOCAB)), "vocabulary"),
        (request([5] * 512), "fit"),
        (request(temperature=0.001), "0.01"),
        (request(temperature=2.5), "up to 2"),
        (request(min_p=0.1, top_p=0.9), "min-p"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            engine.generate([wrong])


def test_the_models_own_limit_ends_a_completion(engine: VLLMEngine, module: Owner) -> None:
    asked = request([5] * 508, n=1, end=())
    row = engine.generate([asked])[0][0]
    assert (len(row.token_ids), row.finish_reason) == (4, "length")


def test_new_weights_are_used_and_old_ones_are_not_kept_by_reference(engine: VLLMEngine, module: Owner) -> None:
    asked = request(n=4)
    before = engine.generate([asked])
    original = {name: tensor.clone() for name, tensor in module.policy.state_dict().items()}
    try:
        perturb(module.policy)
        assert engine.generate([asked]) == before
        engine.sync(module)
        assert engine.last_sync_seconds > 0
        after = engine.generate([asked])[0]
        assert worst_difference(module.policy, asked, after) < 1e-5
        assert after != before[0]
    finally:
        module.policy.load_state_dict(original)


def test_lora_merged_weights(engine: VLLMEngine, module: Owner) -> None:
    adapted = copy.deepcopy(module)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    adapted.policy = get_peft_model(adapted.policy, config)
    perturb(adapted.policy)
    engine.sync(adapted)
    adapted.policy.eval()
    asked = request(n=4)
    completions = engine.generate([asked])[0]
    assert worst_difference(adapted.policy, asked, completions) < 1e-5
    assert worst_difference(module.policy, asked, completions) > 0.1


class TestWhatASyncHasToDo:
    """Leaves one step out and sees log-probs go wrong, or the fingerprints notice."""

    @pytest.fixture(autouse=True)
    def _changed_policy(self, engine: VLLMEngine, module: Owner) -> Iterator[None]:
        original = {name: tensor.clone() for name, tensor in module.policy.state_dict().items()}
        self.asked = request([4 + i % 60 for i in range(300)], n=2)
        engine.generate([self.asked])
        perturb(module.policy)
        yield
        module.policy.load_state_dict(original)
        engine.sync(module)

    def test_cached_prefixes_are_forgotten(self, engine: VLLMEngine, module: Owner) -> None:
        engine._backend.engine.reload(policy_weights(module.policy))
        assert worst_difference(module.policy, self.asked, engine.generate([self.asked])[0]) > 0.01
        engine.sync(module)
        assert worst_difference(module.policy, self.asked, engine.generate([self.asked])[0]) < 1e-5

    def test_the_tied_head_is_sent(self, engine: VLLMEngine, module: Owner) -> None:
        def without_head(policy: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
            return (pair for pair in policy_weights(policy) if pair[0] != "lm_head.weight")

        engine._backend.load(without_head(module.policy))
        assert worst_difference(module.policy, self.asked, engine.generate([self.asked])[0]) > 0.1
        held = engine._backend.fingerprints({"lm_head.weight": 128, "model.embed_tokens.weight": 128}, 0)[0]
        assert held["lm_head.weight"] != held["model.embed_tokens.weight"]

    @pytest.mark.parametrize(
        "name",
        [
            "lm_head.weight",
            "model.layers.1.self_attn.k_proj.weight",
            "model.layers.0.self_attn.v_proj.bias",
            "model.layers.1.mlp.up_proj.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.norm.weight",
        ],
    )
    def test_one_wrong_element_is_found_and_named(
        self, engine: VLLMEngine, module: Owner, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        def load(weights: Iterator[tuple[str, torch.Tensor]]) -> None:
            spoilt = []
            for key, tensor in weights:
                tensor = tensor.clone()
                if key == name:
                    matrix = as_matrix(tensor)
                    column = sampled_columns(matrix.shape[1], engine._syncs)[-1]
                    matrix[3, column] = matrix[3, column].nextafter(torch.tensor(9.0))
                spoilt.append((key, tensor))
            engine._backend.engine.reload(iter(spoilt))

        monkeypatch.setattr(engine._backend, "load", load)
        with pytest.raises(WeightSyncError, match=name) as raised:
            engine.sync(module)
        tied = ["model.embed_tokens.weight", "lm_head.weight"]  # the head is sent last, into the same memory
        assert raised.value.differ == (tied if name in tied else [name])


def test_the_process_is_left_as_it_was(engine: VLLMEngine, module: Owner) -> None:
    before = torch.random.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
    engine.sync(module)
    engine.generate([request()])
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert numpy.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    assert "distributed" not in str(sys.excepthook.__module__)
    assert torch.set_num_threads.__module__ != "vllm.v1.worker.cpu_worker"
    assert not any("libgomp" in value for name, value in os.environ.items() if name == "LD_PRELOAD")
