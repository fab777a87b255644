"""The engine against the trainer's log-probs, transformers' ``generate`` and itself in other batches."""

from dataclasses import replace

import pytest
import torch

from app.engines import kv_cache
from app.engines.engine import Completion, GenerationRequest, SamplingSettings
from app.engines.stop_strings import StopStrings
from app.engines.transformers_engine import TransformersEngine
from app.errors import ConfigurationError
from app.policy.logprobs import token_log_probs
from app.policy.models import NewTokenizerSettings, PolicySettings, load_policy, load_tokenizer
from app.policy.packing import build
from tests.engines.vllm import support
from tests.engines.vllm.support import UNKNOWN, Owner, word_tokenizer
from tests.models import tiny_model

ENDS = (1, 2)
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16], [17, 18], [19, 20, 21, 22, 23]]


def owner_of(policy, tokenizer=None):
    return Owner(policy, tokenizer or word_tokenizer(), compute_dtype=policy.dtype)


def engine_of(policy, max_batch_rows=256, tokenizer=None):
    engine = TransformersEngine(max_batch_rows)
    module = owner_of(policy, tokenizer)
    engine.start(module)
    engine.sync(module)
    return engine


def requests_of(prompts=PROMPTS, n=4, ends=ENDS, **sampling):
    settings = SamplingSettings(**({"max_new_tokens": 24} | sampling))
    return [GenerationRequest(prompt, n, seed, settings, ends) for seed, prompt in enumerate(prompts)]


def trainer_log_probs(policy, request, completions, temperature):
    batch = build([request.prompt_ids] * len(completions), [row.token_ids for row in completions], 0)
    with torch.no_grad():
        rows = token_log_probs(policy, batch, temperature).log_probs
    return [row[: len(completion.token_ids)] for row, completion in zip(rows, completions, strict=True)]


def worst_difference(policy, requests, groups):
    """Largest distance between sampled and trainer's log-probs."""
    distances = []
    for request, group in zip(requests, groups, strict=True):
        temperature = request.sampling.temperature or 1.0
        for row, expected in zip(group, trainer_log_probs(policy, request, group, temperature), strict=True):
            distances.append((torch.tensor(row.log_probs) - expected).abs().max())
    return max(distances)


def flat(groups: list[list[Completion]]) -> list[Completion]:
    return [row for group in groups for row in group]


def same(one: list[list[Completion]], other: list[list[Completion]]) -> None:
    """Equal tokens and reasons; log-probs up to float noise."""
    assert [len(group) for group in one] == [len(group) for group in other]
    for a, b in zip(flat(one), flat(other), strict=True):
        assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
        torch.testing.assert_close(torch.tensor(a.log_probs), torch.tensor(b.log_probs), atol=1e-4, rtol=0)


# ── agreement with the trainer ──


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_sampled_log_probs_are_the_trainers_also_after_a_weight_change(kind, temperature):
    policy = tiny_model(kind)
    engine, requests = engine_of(policy), requests_of(temperature=temperature)
    before = engine.generate(requests)
    assert worst_difference(policy, requests, before) < 1e-5
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    engine.sync(owner_of(policy))
    after = engine.generate(requests)
    assert worst_difference(policy, requests, after) < 1e-5
    assert after != before


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_either_attention_agrees_with_the_trainer(attention):
    policy = tiny_model()
    policy.set_attn_implementation(attention)
    requests = requests_of()
    assert worst_difference(policy, requests, engine_of(policy).generate(requests)) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [{"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, {"num_key_value_heads": 4}],
    ids=["sliding", "all-heads"],
)
def test_other_caches_agree_with_the_trainer(changes):
    policy = tiny_model(**changes)
    requests = requests_of(ends=())
    assert worst_difference(policy, requests, engine_of(policy, 7).generate(requests)) < 1e-5


@pytest.mark.parametrize("room", [1, 5])
def test_caches_that_grow_agree_with_the_trainer(monkeypatch, room):
    monkeypatch.setattr(kv_cache, "LEAST_ROOM", room)
    policy, requests = tiny_model(), requests_of()
    engine = engine_of(policy)
    engine.streams = False
    assert worst_difference(policy, requests, engine.generate(requests)) < 1e-5


def test_truncated_sampling_reports_the_truncated_distribution():
    policy = tiny_model()
    requests = requests_of(top_k=3, temperature=1.2)
    for request, group in zip(requests, engine_of(policy).generate(requests), strict=True):
        for row in group:
            with torch.no_grad():
                logits = policy(input_ids=torch.tensor([request.prompt_ids + row.token_ids])).logits[0] / 1.2
            steps = logits[len(request.prompt_ids) - 1 : -1]
            kept = steps.topk(3)
            expected = steps.gather(1, torch.tensor(row.token_ids)[:, None])[:, 0] - kept.values.logsumexp(1)
            torch.testing.assert_close(torch.tensor(row.log_probs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_greedy_gives_the_tokens_of_transformers_generate(kind):
    policy = tiny_model(kind)
    requests = requests_of(n=1, temperature=0)
    groups = engine_of(policy).generate(requests)
    for request, [row] in zip(requests, groups, strict=True):
        ids = policy.generate(
            torch.tensor([request.prompt_ids]),
            attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=list(ENDS),
            pad_token_id=0,
        )
        assert row.token_ids == ids[0, len(request.prompt_ids) :].tolist()
    assert worst_difference(policy, requests, groups) < 1e-5


def test_first_tokens_follow_the_policys_distribution():
    policy = tiny_model(spread=3.0)
    requests = [replace(request, n=4000) for request in requests_of(PROMPTS[:2], max_new_tokens=1)]
    for request, group in zip(requests, engine_of(policy).generate(requests), strict=True):
        with torch.no_grad():
            probs = policy(input_ids=torch.tensor([request.prompt_ids])).logits[0, -1].softmax(-1)
        seen = torch.tensor([row.token_ids[0] for row in group]).bincount(minlength=72) / 4000
        # 5 standard deviations a token
        assert ((seen - probs).abs() <= 5 * (probs / 4000).sqrt() + 1e-3).all()


# ── a completion depends on weights, prompt, sampling, seed and index alone ──


@pytest.mark.parametrize("max_batch_rows", [1, 3, 7, 20])
def test_batch_size_changes_nothing(max_batch_rows):
    policy, requests = tiny_model(), requests_of()
    same(engine_of(policy, max_batch_rows).generate(requests), engine_of(policy).generate(requests))


def test_order_company_and_group_size_change_nothing():
    engine, requests = engine_of(tiny_model()), requests_of()
    together = engine.generate(requests)
    same(engine.generate(requests[::-1])[::-1], together)
    for request, group in zip(requests, together, strict=True):
        same(engine.generate([replace(request, n=6)]), [[*group, *engine.generate([replace(request, n=6)])[0][4:]]])


def test_mixed_settings_in_one_call_are_as_if_alone():
    engine = engine_of(tiny_model())
    mixed = [
        requests_of(temperature=0.7)[0],
        requests_of(temperature=0)[1],
        requests_of(ends=(3, 4, 5, 6))[2],
        requests_of(max_new_tokens=3)[3],
    ]
    same(engine.generate(mixed), [engine.generate([request])[0] for request in mixed])


def test_seeds_decide():
    engine, [request] = engine_of(tiny_model()), requests_of(PROMPTS[:1])
    again, other = replace(request), replace(request, seed=99)
    one, same_seed, other_seed = engine.generate([request, again, other])
    same([one], [same_seed])
    assert one != other_seed
    assert len({tuple(row.token_ids) for row in one}) > 1


def test_nothing_global_changes():
    policy = tiny_model().train()
    policy.model.layers[0].eval()
    modes, state = [module.training for module in policy.modules()], torch.get_rng_state()
    groups = engine_of(policy).generate(requests_of())
    assert [module.training for module in policy.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    same(groups, engine_of(tiny_model()).generate(requests_of()))


def test_dropout_is_off_while_sampling():
    policy = tiny_model(attention_dropout=0.5).train()
    same(engine_of(policy).generate(requests_of()), engine_of(tiny_model()).generate(requests_of()))


# ── where completions end ──


def test_completions_end_with_their_first_end_token_or_at_the_limit():
    reasons = set()
    for max_new_tokens in (1, 2, 5, 24):
        for group in engine_of(tiny_model()).generate(requests_of(n=16, max_new_tokens=max_new_tokens)):
            for row in group:
                ends = [token in ENDS for token in row.token_ids]
                assert len(row.token_ids) == len(row.log_probs) <= max_new_tokens
                assert not any(ends[:-1])
                assert row.finish_reason == ("stop" if ends[-1] else "length")
                assert ends[-1] or len(row.token_ids) == max_new_tokens
                reasons.add((row.finish_reason, len(row.token_ids) == max_new_tokens))
    assert reasons == {("stop", True), ("stop", False), ("length", True)}


def test_a_sampled_pad_token_is_a_token_like_any_other():
    policy = tiny_model()
    policy.config.pad_token_id = 0
    requests = requests_of(n=64, temperature=2.0)
    groups = engine_of(policy).generate(requests)
    middles = [row for group in groups for row in group if 0 in row.token_ids[:-1]]
    assert middles
    assert worst_difference(policy, requests, groups) < 1e-5


def test_shorter_limits_give_prefixes():
    engine = engine_of(tiny_model())
    long, short = (engine.generate(requests_of(max_new_tokens=limit)) for limit in (24, 6))
    for a, b in zip(flat(long), flat(short), strict=True):
        assert b.token_ids == a.token_ids[:6]


def test_completions_end_at_the_context_length():
    policy = tiny_model(max_position_embeddings=12)
    requests = requests_of(ends=())
    for request, group in zip(requests, engine_of(policy).generate(requests), strict=True):
        assert {len(row.token_ids) for row in group} == {12 - len(request.prompt_ids)}
        assert {row.finish_reason for row in group} == {"length"}


# ── stop strings ──


@pytest.fixture(scope="module")
def worded():
    """A policy and the tokenizer of its 72 words, whose digits are tokens of their own."""
    settings = PolicySettings(config={"model_type": "qwen2"}, tokenizer=NewTokenizerSettings())
    return tiny_model(spread=2.0), load_tokenizer(settings)


@pytest.mark.parametrize("max_batch_rows", [70, 256])
@pytest.mark.parametrize("strings", [("}",), ("11", "7;"), ("<user>",), (" has ", "9")])
def test_stop_strings_end_a_completion_with_the_token_that_completes_one(worded, strings, max_batch_rows):
    policy, tokenizer = worded
    engine = engine_of(policy, max_batch_rows, tokenizer)
    free = flat(engine.generate(requests_of(n=40, max_new_tokens=30)))
    stopped = flat(engine.generate(requests_of(n=40, max_new_tokens=30, stop_strings=strings)))
    hits = 0
    for a, b in zip(free, stopped, strict=True):
        texts = [tokenizer.decode(a.token_ids[: end + 1]) for end in range(len(a.token_ids))]
        first = next((i for i, text in enumerate(texts) if any(string in text for string in strings)), None)
        expected = a.token_ids if first is None else a.token_ids[: first + 1]
        assert b.token_ids == expected
        assert b.finish_reason == (a.finish_reason if first is None else "stop")
        hits += first is not None
    assert 5 < hits < len(free)


def test_stop_strings_are_found_across_tokens_bytes_and_looks(tmp_path):
    """Each character of a subword tokenizer without merges is one or more tokens."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"problem": "a"}\n')
    tokenizer = load_tokenizer(
        PolicySettings(config={"model_type": "qwen2"}, tokenizer=NewTokenizerSettings(str(corpus), "bpe", 260))
    )
    row = tokenizer.encode("so x² ≥ the answer is ½. done")
    for string, seen in (("answer is", "so x² ≥ the answer is"), ("½", "so x² ≥ the answer is ½"), ("zebra", None)):
        stop = StopStrings(tokenizer, (string,))
        for step in (1, 3, 4, len(row)):
            found = None
            for checked in range(0, len(row), step):
                start = stop.tail_start(checked)
                end = stop.first_ends([row[start : checked + step]], checked - start)[0]
                found = found or (end and start + end)
            assert (found and tokenizer.decode(row[:found])) == seen


# ── refusals ──


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[5], []], "prompt 1 of 2 is empty"),
        ([[5] * 512], "has 512 tokens, which leaves no room in the model's context of 512"),
        ([[5, 72]], "outside the model's vocabulary of 72"),
        ([[-1]], "outside the model's vocabulary"),
    ],
)
def test_prompts_that_cannot_work_are_refused(prompts, message):
    with pytest.raises(ConfigurationError, match=message):
        engine_of(tiny_model()).generate(requests_of(prompts))


def test_an_engine_that_is_not_started_or_closed_says_so():
    engine = TransformersEngine()
    with pytest.raises(RuntimeError, match="not started"):
        engine.generate(requests_of())
    engine.start(owner_of(tiny_model()))
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="not started"):
        engine.generate(requests_of())
    with pytest.raises(ConfigurationError, match="max_batch_rows"):
        TransformersEngine(0)


def test_no_requests_give_no_completions():
    assert engine_of(tiny_model()).generate([]) == []


def test_inference_mode_around_the_engine_leaves_the_policy_trainable():
    policy = tiny_model()
    with torch.inference_mode():
        groups = engine_of(policy).generate(requests_of())
    batch = build(PROMPTS, [group[0].token_ids for group in groups], 0)
    token_log_probs(policy, batch).log_probs.sum().backward()
    assert policy.lm_head.weight.grad.isfinite().all()


def test_a_policy_loaded_in_bfloat16_samples_float32_log_probs():
    settings = PolicySettings(
        config={"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2},
        tokenizer=NewTokenizerSettings(),
        dtype="bfloat16",
    )
    policy, requests = load_policy(settings), requests_of(max_new_tokens=8)
    groups = engine_of(policy).generate(requests)
    assert worst_difference(policy, requests, groups) < 0.1


@pytest.mark.parametrize("temperature", [3.0, 0.0])
def test_an_id_that_the_tokenizer_does_not_know_may_be_forbidden(temperature):
    policy = tiny_model()
    if temperature == 0:  # what a greedy policy would draw everywhere
        with torch.no_grad():
            policy.get_output_embeddings().weight[UNKNOWN] *= 30
    engine = engine_of(policy, tokenizer=word_tokenizer(unknown=UNKNOWN))
    for forbidden in (False, True):
        requests = requests_of(temperature=temperature, n=16, ends=(), forbid_unknown_tokens=forbidden)
        groups = engine.generate(requests)
        assert any(UNKNOWN in row.token_ids for row in flat(groups)) != forbidden
        for request, rows in zip(requests, groups, strict=True):
            assert support.worst_difference(policy, request, rows) < 1e-4
