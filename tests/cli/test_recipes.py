"""Every recipe: composed by the real parser, checked by dry run and run for one iteration on a shrunk model."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from app.cli.main import main
from app.data.registry import REGISTRY
from app.policy.exporting import save_policy
from app.policy.models import NewTokenizerSettings, PolicySettings, load_tokenizer
from app.policy.tokenizers import CHATML
from tests.models import tiny_config

RECIPES = Path("configs/recipes")
BASE = RECIPES / "base_rl.yaml"
MODELS = sorted(path.stem for path in (RECIPES / "model").glob("*.yaml"))
METHODS = sorted(path.stem for path in (RECIPES / "method").glob("*.yaml"))
DATA = sorted(path.stem for path in (RECIPES / "data").glob("*.yaml"))
STRATEGIES = sorted(path.stem for path in Path("configs/strategy").glob("*.yaml"))
WITH_SOLUTIONS = ("gsm8k", "deepscaler")
LOCAL = "local.yaml"
"""A configuration that reads the training set from its own folder."""

LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
R1_CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# model → hub id, model_type, tied embeddings, chat template, longest completion, what stands in each prompt
EXPECTED: dict[str, tuple[str, str, bool, str | None, int, str]] = {
    "qwen2.5-math-1.5b": ("Qwen/Qwen2.5-Math-1.5B", "qwen2", True, CHATML, 256, "Question: "),
    "qwen2.5-math-1.5b-instruct": ("Qwen/Qwen2.5-Math-1.5B-Instruct", "qwen2", True, CHATML, 256, "<|im_start|>system"),
    "deepseek-r1-distill-qwen-1.5b": (
        *("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "qwen2", False, R1_CHAT, 256),
        "within \\boxed{}.<|Assistant|><think>",
    ),
    "deepseek-r1-distill-qwen-7b": (
        *("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "qwen2", False, R1_CHAT, 768),
        "within \\boxed{}.<|Assistant|><think>",
    ),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B", "qwen2", False, CHATML, 768, "Question: "),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B", "llama", False, None, 768, "Question: "),
    "llama-3.1-8b-instruct": (
        *("meta-llama/Llama-3.1-8B-Instruct", "llama", False, LLAMA_CHAT, 768),
        "<|start_header_id|>user",
    ),
}
APPLICATIONS = {
    "grpo": "none",
    "grpo_lambda_trace_both": "trace",
    "grpo_lambda_trace_recent": "trace",
    "grpo_lambda_weight_both": "weight",
    "grpo_lambda_weight_recent": "weight",
}


def test_every_recipe_is_known_here() -> None:
    assert sorted(EXPECTED) == MODELS
    assert sorted(APPLICATIONS) == METHODS
    assert sorted(DATA) == ["dapo17k", "deepscaler", "gsm8k", "math12k", "orz57k"]
    assert STRATEGIES == ["ddp", "fsdp", "fsdp2", "fsdp2_offload", "single"]


# ── shrunk stand-ins for what is on the hub ──


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few rows of every training set, under the names that the registry looks for."""
    folder = tmp_path_factory.mktemp("problems")
    for name in DATA:
        rows = [
            {"problem": f"What is {n} + {n + 1}?", "answer": str(2 * n + 1)}
            | ({"solution": f"{n} + {n + 1} = {2 * n + 1}"} if name in WITH_SOLUTIONS else {})
            for n in range(8)
        ]
        file = folder / REGISTRY[name].file_names("train")[0]
        file.write_text("\n".join(json.dumps(row) for row in rows))
    train = {"init_args": {"folder": str(folder)}}
    (folder / LOCAL).write_text(json.dumps({"data": {"init_args": {"train": train}}}))
    return folder


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory, problems: Path) -> dict[str, Path]:
    """Model → HF folder with a model of its type, about 30 k parameters, and with its kind of chat template."""
    root = tmp_path_factory.mktemp("policies")
    corpus = str(problems / "gsm8k_train.jsonl")
    made = {}
    for name, (_, kind, tied, template, _, _) in EXPECTED.items():
        settings = NewTokenizerSettings(kind="bpe", corpus=corpus, vocab_size=300)
        config = tiny_config(kind, vocab_size=300, tie_word_embeddings=tied, max_position_embeddings=2048)
        tokenizer = load_tokenizer(PolicySettings(config=config, tokenizer=settings))
        tokenizer.chat_template = template
        tokenizer.bos_token = "<|im_start|>"
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        made[name] = save_policy(model, tokenizer, root / name)
    return made


def stack(*files: str, problems: Path | None = None) -> list[str]:
    """The options of a recipe; with ``problems`` its training set is read from there, before any overlay of a stage."""
    paths = [RECIPES / f"{file}.yaml" for file in files]
    overlays = [path for path in paths if path.stem.startswith("sft")]
    local = [] if problems is None else [problems / LOCAL]
    ordered = [BASE, *(path for path in paths if path not in overlays), *local, *overlays]
    return [word for path in ordered for word in ("--config", str(path))]


def printed_config(capsys: pytest.CaptureFixture, arguments: list[str]) -> dict[str, Any]:
    import yaml

    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


# ── composed ──


@pytest.mark.parametrize("model", MODELS)
def test_a_models_recipe_keeps_the_papers_settings(capsys: pytest.CaptureFixture, model: str) -> None:
    config = printed_config(capsys, stack(f"model/{model}", "method/grpo_lambda_trace_both", "data/math12k"))
    module, rollouts = config["model"]["init_args"], config["rollouts"]["init_args"]
    hub_id, _, _, _, longest, _ = EXPECTED[model]
    assert module["policy"]["path"] == hub_id
    assert module["policy"]["gradient_checkpointing"] is True
    objective = {name: module["objective"][name] for name in ("lam", "gamma", "application", "style")}
    assert objective == {"lam": 0.99, "gamma": 1.0, "application": "trace", "style": "both"}
    assert module["advantages"] == {"clamp_negative": 0.1, "scale": "std"}
    assert rollouts["sampling"]["max_new_tokens"] == longest
    assert rollouts["group_size"] == 8
    assert config["data"]["init_args"]["prompt"]["max_prompt_tokens"] == 512
    assert config["data"]["init_args"]["train"]["init_args"]["name"] == "math12k"


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_recipe_changes_the_trace_alone(capsys: pytest.CaptureFixture, method: str) -> None:
    plain = printed_config(capsys, stack("model/qwen2.5-7b", "data/math12k"))
    config = printed_config(capsys, stack("model/qwen2.5-7b", f"method/{method}", "data/math12k"))
    objective = config["model"]["init_args"].pop("objective")
    assert objective["application"] == APPLICATIONS[method]
    assert method == "grpo" or objective["style"] == method.rsplit("_", 1)[-1]
    before = plain["model"]["init_args"].pop("objective")
    changed = {name for name in before if before[name] != objective[name]}
    assert changed <= {"application", "style"}
    config.pop("name"), plain.pop("name")
    assert config == plain


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_lies_over_a_recipe(capsys: pytest.CaptureFixture, strategy: str) -> None:
    arguments = stack("model/qwen2.5-7b", "method/grpo_lambda_weight_recent", "data/dapo17k")
    config = printed_config(capsys, [*arguments, "--config", f"configs/strategy/{strategy}.yaml"])
    assert config["trainer"]["precision"] == "bf16-true"
    assert config["model"]["init_args"]["objective"]["application"] == "weight"


def test_vllm_lies_over_a_recipe(capsys: pytest.CaptureFixture) -> None:
    config = printed_config(capsys, stack("model/qwen2.5-7b", "method/grpo", "data/gsm8k", "engine/vllm"))
    engine = config["rollouts"]["init_args"]["engine"]
    assert engine["class_path"] == "app.engines.vllm.engine.VLLMEngine"  # which the bare name stands for
    assert config["rollouts"]["init_args"]["sampling"]["max_new_tokens"] == 768


# ── by dry run ──


def checked(capsys: pytest.CaptureFixture, arguments: list[str], policy: Path, *options: str) -> str:
    """The dry run's print-out, on the CPU with a stand-in for the model."""
    stand_in = ["--model.policy.path", str(policy), "--trainer.accelerator", "cpu"]
    code = main(["fit", *arguments, *stand_in, *options, "--dry_run"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_with_every_method_and_every_training_set(
    capsys: pytest.CaptureFixture, policies: dict[str, Path], problems: Path, model: str
) -> None:
    for method in METHODS:
        arguments = stack(f"model/{model}", f"method/{method}", "data/math12k", problems=problems)
        out = checked(capsys, arguments, policies[model])
        longest = f"{256 * EXPECTED[model][4]:,}"
        assert f"{longest:>16}{longest:>16}" in out
        assert "activations" in out
    for data in DATA:
        arguments = stack(f"model/{model}", "method/grpo_lambda_trace_both", f"data/{data}", problems=problems)
        out = checked(capsys, arguments, policies[model])
        assert f"{data}: 8 of 8 rows kept" in out


def test_the_documented_configuration_by_dry_run(
    capsys: pytest.CaptureFixture, policies: dict[str, Path], problems: Path, tmp_path: Path
) -> None:
    page = Path("docs/running.md").read_text().split("```")
    (block,) = [part for part in page if part.startswith("yaml\nseed_everything")]
    file = tmp_path / "example.yaml"
    file.write_text(block.removeprefix("yaml"))
    arguments = ["--config", str(file), "--config", str(problems / LOCAL)]
    out = checked(capsys, arguments, policies["qwen2.5-math-1.5b-instruct"])
    assert "runs/my-run" in out
    assert "math12k: 8 of 8 rows kept" in out


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_by_dry_run(
    capsys: pytest.CaptureFixture, policies: dict[str, Path], problems: Path, strategy: str
) -> None:
    arguments = stack("model/qwen2.5-7b", "method/grpo_lambda_trace_both", "data/math12k", problems=problems)
    arguments += ["--config", f"configs/strategy/{strategy}.yaml"]
    ranks = 1 if strategy == "single" else 4
    options = ["--trainer.devices", str(ranks)] + (["--trainer.accelerator", "gpu"] if strategy == "fsdp" else [])
    out = checked(capsys, arguments, policies["qwen2.5-7b"], *options)
    assert f"{'  prompts':<30}{32 // ranks:>16}{32:>16}" in out
    assert ("gathered weights" in out) == strategy.startswith("fsdp")
    assert ("in host memory" in out) == strategy.endswith("offload")


def test_vllm_by_dry_run(capsys: pytest.CaptureFixture, policies: dict[str, Path], problems: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is optional: make setup-vllm")
    arguments = stack("model/qwen2.5-7b", "method/grpo", "data/gsm8k", "engine/vllm", problems=problems)
    out = checked(capsys, arguments, policies["qwen2.5-7b"])
    assert "vLLM weights" in out
    with pytest.raises(AssertionError, match=r"max_new_tokens=768 do not fit into the engine's 1024 positions"):
        checked(capsys, arguments, policies["qwen2.5-7b"], "--rollouts.engine.init_args.max_model_len", "1024")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", WITH_SOLUTIONS)
def test_the_supervised_stage_by_dry_run(
    capsys: pytest.CaptureFixture, policies: dict[str, Path], problems: Path, model: str, data: str
) -> None:
    overlays = ["sft", "sft_thinking"] if "r1" in model else ["sft"]
    arguments = stack(f"model/{model}", f"data/{data}", *overlays, problems=problems)
    out = checked(capsys, arguments, policies[model])
    assert f"{'  examples':<30}{64:>16}{64:>16}" in out
    assert "KV cache" not in out


# ── run ──

DIGITS = """
rollouts:
  init_args:
    rewards:
    - class_path: ImportedReward
      init_args: {path: "tests.running:digit_share"}
"""


def run(arguments: list[str], policy: Path, root: Path) -> dict[str, Any]:
    """Fits for one iteration; the exported weights."""
    options = {
        "model.policy.path": policy,
        "data.iterations": 1,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": root,
        "trainer.enable_progress_bar": False,
        "export.folder": root / "hf",
    }
    assert (
        main(["fit", *arguments, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]) == 0
    )
    return load_file(root / "hf" / "model.safetensors")


def changed(policy: Path, trained: dict[str, Any]) -> bool:
    before = load_file(policy / "model.safetensors")
    assert before.keys() == trained.keys()
    return any(not before[name].equal(trained[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "method"), [(model, METHODS[number % len(METHODS)]) for number, model in enumerate(MODELS)]
)
def test_one_iteration_of_each_model(
    policies: dict[str, Path], problems: Path, tmp_path: Path, model: str, method: str
) -> None:
    (tmp_path / "digits.yaml").write_text(DIGITS)
    arguments = stack(f"model/{model}", f"method/{method}", "data/dapo17k", problems=problems)
    arguments += ["--config", str(tmp_path / "digits.yaml")]
    small = [
        "--data.prompts_per_iteration",
        "2",
        "--rollouts.group_size",
        "4",
        "--rollouts.sampling.max_new_tokens",
        "6",
    ]
    trained = run([*arguments, *small], policies[model], tmp_path)
    assert changed(policies[model], trained)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen2.5-math-1.5b", "deepseek-r1-distill-qwen-1.5b", "llama-3.1-8b-instruct"])
def test_one_step_of_the_supervised_stage(
    policies: dict[str, Path], problems: Path, tmp_path: Path, model: str
) -> None:
    overlays = ["sft", "sft_thinking"] if "r1" in model else ["sft"]
    arguments = [*stack(f"model/{model}", "data/gsm8k", *overlays, problems=problems), "--data.batch_size", "4"]
    assert changed(policies[model], run(arguments, policies[model], tmp_path))


@pytest.mark.parametrize("model", MODELS)
def test_prompts_are_of_the_models_kind(capsys: pytest.CaptureFixture, policies: dict[str, Path], model: str) -> None:
    from app.data.prompts import PromptEncoder, PromptSettings

    config = printed_config(capsys, stack(f"model/{model}", "method/grpo", "data/gsm8k"))
    settings = PromptSettings(**config["data"]["init_args"]["prompt"])
    tokenizer = load_tokenizer(PolicySettings(path=str(policies[model])))
    text = PromptEncoder(settings, tokenizer).text("What is 1 + 2?")
    assert "What is 1 + 2?" in text
    assert EXPECTED[model][5] in text
