"""The dry run's estimates beside what really built models hold."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from app.dry_run.memory import (
    MicroBatch,
    Numbers,
    ParameterCounts,
    Resident,
    Shape,
    count_parameters,
    generation_items,
    layer_activation_bytes,
    peak,
    resident_items,
    training_items,
)
from app.dry_run.plan import meta_policy
from app.engines.kv_cache import new_cache
from app.policy import head_log_probs
from app.policy.head import is_plain_head
from app.policy.logprobs import token_log_probs
from app.policy.lora import LoraSettings
from app.policy.models import NewTokenizerSettings, PolicySettings, load_policy
from app.policy.optimizers import OptimizerSettings, build_optimizer, trained_parameters
from app.policy.packing import build
from app.policy.sharding.strategies import Sharding
from benchmarks.allocations import Allocated
from tests.dry_run.published import PUBLISHED
from tests.models import tiny_config
from tests.running import policy_settings


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    expected, config = PUBLISHED[name]
    counts = count_parameters(meta_policy(PolicySettings(config=config, tokenizer=NewTokenizerSettings())))
    assert counts.total == counts.trainable == expected
    assert counts.layer * config["num_hidden_layers"] + counts.rest == expected
    assert counts.total_bytes == 4 * expected


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("lora", [None, LoraSettings(r=4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_gradients_and_optimiser_are_those_of_a_model_that_made_a_step(
    kind: str, lora: LoraSettings | None, dtype: Any
) -> None:
    plain = policy_settings(kind)
    settings = PolicySettings(config=plain.config, tokenizer=plain.tokenizer, dtype=dtype, lora=lora)
    model = load_policy(settings)
    optimizer = build_optimizer(*trained_parameters(model), OptimizerSettings())
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()

    counts = count_parameters(meta_policy(settings))
    estimated = {item.name: item.bytes for item in resident_items(Resident(counts, gathered_bytes=4))}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    states = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert estimated == {
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
        "gradients": sum(parameter.grad.nbytes for parameter in trained),
        "optimiser": sum(state.nbytes for state in states),
    }
    assert counts.trainable < counts.total or lora is None


def kept_bytes(kind: str, precision: str, layers: int, checkpointing: bool = False) -> float:
    """What a forward pass of two ragged rows leaves for the backward pass; parameters are not counted."""
    settings = PolicySettings(
        config=tiny_config(kind, hidden_size=64, intermediate_size=176, num_hidden_layers=layers, vocab_size=97),
        tokenizer=NewTokenizerSettings(),
        dtype="bfloat16" if precision == "bf16-true" else "float32",
        gradient_checkpointing=checkpointing,
    )
    mixed = "bf16-mixed" if precision == "bf16-mixed" else "32-true"
    model = Sharding(precision=mixed).load_policy(settings, seed=0).train()
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept.setdefault(storage.data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_log_probs(model, build([[1] * 10, [1] * 7], [[2] * 22, [2] * 15], 0))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


NUMBERS = {"32-true": Numbers(4), "bf16-true": Numbers(2), "bf16-mixed": Numbers(2, mixed=True)}


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("precision", list(NUMBERS))
def test_a_layers_activations_are_those_that_autograd_keeps(kind: str, precision: str) -> None:
    measured = (kept_bytes(kind, precision, 4) - kept_bytes(kind, precision, 2)) / 2
    shape = Shape(layers=1, hidden=64, heads=4, kv_heads=2, head_size=16, ffn=176, vocab=97, context=None)
    copies = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176) if precision == "bf16-mixed" else 0
    assert layer_activation_bytes(2, 31, shape, NUMBERS[precision]) + copies == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("precision", list(NUMBERS))
def test_with_checkpointing_a_layer_keeps_its_input(precision: str) -> None:
    measured = (kept_bytes("qwen2", precision, 4, True) - kept_bytes("qwen2", precision, 2, True)) / 2
    shape = Shape(layers=1, hidden=64, heads=4, kv_heads=2, head_size=16, ffn=176, vocab=97, context=None)
    counts = ParameterCounts(0, 0, 0, 0, 0, 0)

    def estimate(layers: int) -> float:
        deeper = Shape(**{**vars(shape), "layers": layers})
        return training_items(MicroBatch(2, 31, 22, True), deeper, NUMBERS[precision], counts)[0].bytes

    assert (estimate(4) - estimate(2)) / 2 == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("precision", list(NUMBERS))
def test_log_probs_take_what_both_passes_hold_at_most(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the head's own gradient: of 9 rows, 40 tokens each, under a vocabulary of 2,000."""
    monkeypatch.setattr(head_log_probs, "TILE_ELEMENTS", 2**13)
    monkeypatch.setattr(head_log_probs, "BLOCK", 128)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    states = torch.ones(9, 50, 64, dtype=dtype, requires_grad=True)
    weight, ids = torch.ones(2000, 64, dtype=dtype, requires_grad=True), torch.ones(360, dtype=torch.long)
    with Allocated([states, weight, ids]) as made, torch.autocast("cpu", enabled=precision == "bf16-mixed"):
        hidden = states[:, -40:].flatten(0, 1)
        wanted = head_log_probs.Wanted(entropy=True)
        log_probs = head_log_probs.head_log_probs(hidden, weight, None, ids, wanted=wanted).log_probs
        torch.autograd.grad(log_probs.sum(), (hidden, weight))
    shape = Shape(layers=1, hidden=64, heads=4, kv_heads=2, head_size=16, ffn=176, vocab=2000, context=None)
    batch, none = MicroBatch(9, 50, 40, True), ParameterCounts(0, 0, 0, 0, 0, 0)
    estimated = training_items(batch, shape, NUMBERS[precision], none)[1].bytes
    assert estimated == pytest.approx(made.peak - weight.nbytes, rel=0.2)
    logits = training_items(replace(batch, whole_logits=True), shape, NUMBERS[precision], none)[1].bytes
    assert logits > 4 * estimated


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_cache_is_as_large_as_the_engines_own(precision: str) -> None:
    model = Sharding(precision=precision).load_policy(policy_settings(), seed=0)
    cache = new_cache(model.config)
    with torch.no_grad():
        for width in (40, *[1] * 24):
            model(input_ids=torch.ones((6, width), dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(part.untyped_storage().nbytes() for layer in cache.layers for part in (layer.keys, layer.values))
    shape = Shape.of(model.config)
    estimated = generation_items(6, 64, shape, NUMBERS[precision])[0].bytes / (1 + 1 / shape.layers)
    assert held <= 1.02 * estimated
    assert held >= estimated / 1.13


def test_adapters_on_the_head_are_known_to_need_whole_logits() -> None:
    plain = policy_settings()
    adapted = replace(plain, lora=LoraSettings(r=2, target_modules=("lm_head",)))
    assert is_plain_head(meta_policy(plain))
    assert is_plain_head(meta_policy(replace(plain, lora=LoraSettings(r=2))))
    assert not is_plain_head(meta_policy(adapted))


def test_shards_divide_what_is_held_and_the_larger_phase_counts() -> None:
    counts = ParameterCounts(total=100, trainable=100, layer=10, rest=20, total_bytes=400, trainable_bytes=400)
    whole = {item.name: item.bytes for item in resident_items(Resident(counts, 4, buckets=True, reference="device"))}
    assert whole == {
        "weights": 400,
        "gradients": 400,
        "optimiser": 800,
        "gradient buckets": 400,
        "reference": 400,
    }
    sharded = resident_items(Resident(counts, 2, shards=4, sharded=True, optimizer="adamw", reference="host"))
    held = {item.name: item.bytes for item in sharded}
    assert held == {
        "weights": 100,
        "gradients": 100,
        "optimiser": 200,
        "reference": 100,
        "gathered weights": 80,
        "their gradients": 180,
    }
    assert peak(sharded) == 400 + 260  # the reference is in host memory
    offloaded = resident_items(Resident(counts, 2, shards=4, sharded=True, offload=True))
    assert {item.name for item in offloaded if item.phase == "host"} == {"weights", "gradients", "optimiser"}
    assert peak(offloaded) == 260  # what is gathered for the moment
    generating = generation_items(1, 1, Shape(1, 1, 1, 1, 500, 1, 1, None), Numbers(4))
    assert peak([*sharded, *generating]) == 400 + sum(item.bytes for item in generating)
