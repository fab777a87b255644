"""The dry run: its estimates beside what really built models hold, what it refuses, what it warns of."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.cli import main
from app.dry_run.layout import Layout, plan_layout
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
from app.errors import ConfigurationError
from app.policy.logprobs import token_log_probs
from app.policy.lora import LoraSettings
from app.policy.models import NewTokenizerSettings, PolicySettings, load_policy, load_tokenizer, save_policy
from app.policy.optimizers import OptimizerSettings, build_optimizer
from app.policy.packing import build
from app.policy.sharding import Sharding, trained_parameters
from app.rollout.kv_cache import new_cache
from tests.models import tiny_config
from tests.running import policy_settings

# ── estimates beside real models ──

PUBLISHED = {
    "qwen2.5-1.5b": (
        1_543_714_304,
        {"model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12}
        | {"num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True},
    ),
    "qwen2.5-7b": (
        7_615_616_512,
        {"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28}
        | {"num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
    ),
    "llama-3.1-8b": (
        8_030_261_248,
        {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False},
    ),
}


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
        return training_items(MicroBatch(2, 31, 22, False, True), deeper, NUMBERS[precision], counts)[0].bytes

    assert (estimate(4) - estimate(2)) / 2 == pytest.approx(measured, rel=0.01)


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
    generating = generation_items(1, 1, Shape(1, 1, 1, 1, 500, 1, 1, None), Numbers(4))
    assert peak([*sharded, *generating]) == 400 + sum(item.bytes for item in generating)


# ── processes ──


@pytest.mark.parametrize(
    ("trainer", "ranks", "kind"),
    [
        ({"accelerator": "cpu"}, 1, "single"),
        ({"accelerator": "cpu", "devices": 4}, 4, "ddp"),
        ({"devices": "2", "num_nodes": 3}, 6, "ddp"),
        ({"devices": [0, 3], "strategy": "fsdp"}, 2, "fsdp"),
        ({"devices": "0,1,2", "strategy": "ddp"}, 3, "ddp"),
    ],
)
def test_ranks_come_from_the_trainers_settings(trainer: dict[str, Any], ranks: int, kind: str) -> None:
    layout = plan_layout(trainer)
    assert (layout.ranks, layout.kind, layout.shards) == (ranks, kind, ranks if kind == "fsdp" else 1)


def test_strategies_of_lightning_are_known_by_their_class() -> None:
    from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

    assert plan_layout({"devices": 2, "strategy": ModelParallelStrategy()}).kind == "fsdp2"
    offloaded = plan_layout({"devices": 2, "strategy": FSDPStrategy(cpu_offload=True)})
    assert (offloaded.kind, offloaded.offload) == ("fsdp", True)


@pytest.mark.parametrize(
    ("kind", "precision", "gathered", "compute", "mixed"),
    [
        ("single", "32-true", 4, 4, False),
        ("single", "bf16-true", 4, 2, True),
        ("ddp", "bf16-mixed", 4, 2, True),
        ("fsdp2", "bf16-mixed", 4, 2, True),
        ("fsdp2", "bf16-true", 2, 2, False),
        ("fsdp", "bf16-mixed", 2, 2, False),
    ],
)
def test_precisions(kind: Any, precision: str, gathered: int, compute: int, mixed: bool) -> None:
    layout = Layout(2, 1, kind, kind, precision)
    found = (layout.gathered_bytes("float32"), layout.compute_bytes("float32"), layout.is_mixed("float32"))
    assert found == (gathered, compute, mixed)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.precision"):
        plan_layout({"precision": "16-mixed"})


# ── the command ──

RL = """
model:
  class_path: GRPOLambdaModule
  init_args: {policy: {path: FOLDER}, micro_batch_size: 3}
data:
  class_path: MathPromptDataModule
  init_args:
    train: {class_path: app.data.sources.JsonLinesSource, init_args: {path: PROBLEMS}}
    benchmarks:
      small: {source: {class_path: app.data.sources.JsonLinesSource, init_args: {path: BENCHMARK}}}
    prompts_per_iteration: 4
    iterations: 3
rollouts: {group_size: 2, sampling: {max_new_tokens: 8}}
evaluation: {sampling: {temperature: 0, max_new_tokens: 8}}
export: {}
trainer: {accelerator: cpu, default_root_dir: ROOT}
"""
LONG = "A farmer has twenty red hens and five white ducks in each of his three long green barns"


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy's folder whose weights are rubbish, problems, and a configuration."""
    root = tmp_path_factory.mktemp("dry_run")
    settings = PolicySettings(config=tiny_config(), tokenizer=NewTokenizerSettings())
    tokenizer = load_tokenizer(settings)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**tiny_config()))
    save_policy(model, tokenizer, root / "policy")
    (root / "policy" / "model.safetensors").write_bytes(b"not weights at all")
    rows = [{"problem": f"Tom has {n} apples . finds 3 . how many ?", "answer": str(n + 3)} for n in range(10)]
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"problem": LONG, "answer": "75"}])))
    (root / "benchmark.jsonl").write_text(json.dumps({"problem": "Sue has 1 pear . how many ?", "answer": "1"}))
    (root / "copied.jsonl").write_text(json.dumps({"problem": LONG, "answer": "75"}))
    names = {"FOLDER": "policy", "PROBLEMS": "train.jsonl", "BENCHMARK": "benchmark.jsonl", "ROOT": "runs"}
    text = RL
    for name, value in names.items():
        text = text.replace(name, value)
    (root / "rl.yaml").write_text(text)
    return root


def dry_run(
    workspace: Path, capsys: pytest.CaptureFixture, *options: str, command: str = "fit"
) -> tuple[int, str, str]:
    """(exit code, print-out, what stands on stderr)."""
    with inside(workspace):
        code = main([command, "--config", "rl.yaml", "--dry_run", *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def numbers_after(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.strip().startswith(label))
    return line.strip().removeprefix(label).split()


def test_it_prints_batches_paths_and_parameters_and_reads_no_weights(
    workspace: Path, capsys: pytest.CaptureFixture
) -> None:
    code, out, _ = dry_run(workspace, capsys, "--model.mini_batches", "2", "--model.updates_per_rollout", "3")
    assert code == 0
    assert numbers_after(out, "prompts") == ["4", "4"]
    assert numbers_after(out, "completions") == ["8", "8"]
    assert numbers_after(out, "completion tokens at most") == ["64", "64"]
    assert numbers_after(out, "optimiser steps") == ["6", "6"]
    assert numbers_after(out, "completions a step") == ["4", "4"]
    assert numbers_after(out, "micro-batches a step") == ["2", "2"]
    assert numbers_after(out, "forward and backward passes") == ["12", "12"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**tiny_config()))
    assert numbers_after(out, "parameters")[0] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert "train.jsonl: train: 11 of 11 rows kept" in out
    assert "1.09 times the training set" in out
    assert out.rstrip().endswith("- none")
    assert not (workspace / "runs").exists()


def test_ranks_divide_the_batch(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    code, out, _ = dry_run(workspace, capsys, "--trainer.devices", "2", "--trainer.num_nodes", "2")
    assert code == 0
    assert numbers_after(out, "prompts") == ["1", "4"]
    assert numbers_after(out, "completions") == ["2", "8"]
    assert "gradient buckets" in out


def test_the_supervised_stage(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    overlay = workspace / "sft.yaml"
    data = "{class_path: SFTDataModule, init_args: {batch_size: 8, completion_template: '{answer}'}}"
    overlay.write_text(f"model: {{class_path: SFTModule}}\ndata: {data}\nrollouts: null\n")
    code, out, err = dry_run(workspace, capsys, "--config", str(overlay))
    assert code == 0, err
    assert numbers_after(out, "examples") == ["8", "8"]
    assert numbers_after(out, "micro-batches a step") == ["3", "3"]
    assert "KV cache" not in out
    code, _, err = dry_run(workspace, capsys, "--config", str(overlay), "--data.completion_template", "{solution}")
    assert code == 2
    assert "has no text in its column 'solution'" in err


REFUSED = {
    ("--trainer.devices", "3"): "data.prompts_per_iteration: 4 does not divide by the 3 ranks (in rl.yaml)",
    ("--trainer.devices", "4", "--model.mini_batches", "2"): "model.mini_batches: 2 does not divide the 1 prompts",
    ("--data.prompt.max_prompt_tokens", "600"): "leave no room in the model's context of 512",
    ("--checkpoint.monitor", "eval/smal/accuracy"): "there is no benchmark 'smal' in data.benchmarks; there are small",
    ("--model.policy.dtype", "bfloat16", "--trainer.precision", "bf16-true"): "trains float32 master weights",
    ("--model.policy.path", "./polcy"): "model.policy.path: no such folder: ./polcy; did you mean policy?",
    ("--trainer.precision", "16-mixed"): "trainer.precision: must be one of",
    ("--data.train", "null"): "data.train: fit needs a training set",
}


@pytest.mark.parametrize("options", list(REFUSED))
def test_what_cannot_work_is_refused_in_one_line(
    workspace: Path, capsys: pytest.CaptureFixture, options: tuple[str, ...]
) -> None:
    code, out, err = dry_run(workspace, capsys, *options)
    assert (code, out) == (2, "")
    assert REFUSED[options] in err
    assert err.strip().splitlines()[-1].startswith("error: ")


def test_it_is_of_fit_alone(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    code, _, err = dry_run(workspace, capsys, command="validate")
    assert code == 2
    assert "dry_run: is of fit alone" in err


WARNED = {
    ("--rollouts.sampling.top_p", "0.9"): "rollouts.sampling: top_p",
    ("--rollouts.sampling.max_new_tokens", "509"): "context is 512",
    ("--evaluation.sampling.max_new_tokens", "7"): "answers that training rewards are cut off",
    ("--export", "null"): "nothing of the trained policy is kept",
    ("--evaluation", "null"): "the benchmarks are not run",
    ("--data.benchmarks", "null"): "data.benchmarks: there are none",
    ("--trainer.val_check_interval", "4"): "more than the run's 3 iterations",
    ("--data.benchmarks.small.source.path", "copied.jsonl"): "the training set holds 1 problems of small",
    ("--model.policy.dtype", "bfloat16"): "are lost",
}


@pytest.mark.parametrize("options", list(WARNED))
def test_what_is_probably_not_meant_is_warned_of(
    workspace: Path, capsys: pytest.CaptureFixture, options: tuple[str, ...]
) -> None:
    code, out, err = dry_run(workspace, capsys, *options)
    assert code == 0, err
    warnings = out[out.index("\nwarnings\n") :]
    assert WARNED[options] in warnings


def test_a_correction_and_drop_silence_their_warnings(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    code, out, err = dry_run(
        workspace,
        capsys,
        *("--rollouts.sampling.top_p", "0.9", "--rollouts.correction.mode", "truncated"),
        *("--data.benchmarks.small.source.path", "copied.jsonl", "--data.overlap", "drop"),
    )
    assert code == 0, err
    assert out.rstrip().endswith("- none")


def test_large_models_are_warned_of_learning_rate_and_memory(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    policy = {"path": None, "config": PUBLISHED["qwen2.5-7b"][1], "tokenizer": {"kind": "synthetic"}}
    large = workspace / "large.yaml"
    large.write_text(json.dumps({"model": {"init_args": {"policy": policy}}}))
    code, out, err = dry_run(workspace, capsys, "--config", str(large), "--model.optimizer.lr", "1e-3")
    assert code == 0, err
    assert "model.optimizer.lr: 0.001 is outside the usual 1e-08 … 2e-05" in out
    assert "over 80 GiB a rank" in out
    code, out, err = dry_run(
        workspace, capsys, "--config", str(large), "--model.policy.lora.r", "8", "--model.optimizer.lr", "1e-4"
    )
    assert code == 0, err
    assert "outside the usual" not in out
