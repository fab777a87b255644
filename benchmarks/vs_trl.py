"""This project and TRL's GRPOTrainer at the same work: ``python -m benchmarks.vs_trl --output FILE``.

Both train the same random policy on the same prompts with the same reward, settings and number of threads: GRPO, one
update a rollout, float32, AdamW without decay, transformers as the engine, no gradient checkpointing (TRL's default has
it on). Each run is a process of its own, and the two take turns, so that both meet the same machine. A run's first
iterations warm it up and do not count. The figure is completion tokens per second of whole iterations.

Time is split by phase on both sides: ``generate``; ``log_probs`` (passes without gradient: π_old and the reference);
``train`` (everything in the update); ``other`` (grading, logging, whatever else an iteration takes).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.rewards.reward import RewardSample

SYSTEMS = ("ours", "trl")
PHASES = ("generate", "log_probs", "train", "other")
VOCABULARY = 85
"""Random weights of small scale draw the end token once in as many tokens: lengths are geometric with this mean."""
SIZES: dict[str, dict[str, int]] = {
    "0.6M": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 3, "num_attention_heads": 4},
    "19M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8},
}


@dataclass(frozen=True)
class Workload:
    """What both systems do.

    Attributes:
        size: of the policy, one of ``SIZES``.
        prompt_tokens: of every prompt.
        new_tokens: the limit of a completion.
        beta: above 0 a reference policy is evaluated, too.
        tied: every other group earns one reward throughout.
    """

    size: str
    prompt_tokens: int
    new_tokens: int
    beta: float = 0.0
    tied: bool = False


WORKLOADS = {
    "A": Workload("0.6M", prompt_tokens=8, new_tokens=96, beta=0.02),
    "B": Workload("19M", prompt_tokens=8, new_tokens=96, beta=0.02),
    "C": Workload("0.6M", prompt_tokens=8, new_tokens=256, tied=True),
    "D": Workload("0.6M", prompt_tokens=256, new_tokens=128),
}
PROMPTS, GROUP, MICRO_BATCH, LEARNING_RATE, WARM_UP = 16, 8, 64, 1e-5, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; see ``--help``."""
    options = _read_options(arguments)
    if options.worker:
        _work(options.worker, options.workloads[0], options.iterations, Path(options.folder))
        return 0
    names, results = options.workloads, []
    for repeat in range(options.repeats):
        for name in names:
            for system in SYSTEMS if repeat % 2 == 0 else SYSTEMS[::-1]:
                figures = _in_its_own_process(system, name, options)
                results.append({"workload": name, "system": system, "repeat": repeat, **figures})
                print(f"{name} {system:5}{figures['tokens_per_s']:>10,.0f} tokens/s", flush=True)
    report = {name: _compare([row for row in results if row["workload"] == name]) for name in names}
    print(_table(report))
    if options.output:
        workloads = {name: asdict(WORKLOADS[name]) for name in names}
        content = {"machine": _machine(), "workloads": workloads, "report": report, "runs": results}
        Path(options.output).write_text(json.dumps(content, indent=1) + "\n")
    return 0


def _read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=5, help="of both systems in turn")
    parser.add_argument("--iterations", type=int, default=5, help=f"of a run that count, after {WARM_UP}")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--folder", default="runs/vs_trl")
    parser.add_argument("--output", help="a JSON file for the figures")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _in_its_own_process(system: str, workload: str, options: argparse.Namespace) -> dict[str, float]:
    folder = Path(options.folder) / f"{workload}-{system}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.vs_trl", "--worker", system, "--workloads", workload]
    command += ["--iterations", str(options.iterations), "--folder", str(folder)]
    # The passive policy is what main.py sets for everybody; threads that spin would slow both.
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)
    return json.loads((folder / "result.json").read_text())


def _machine() -> str:
    from benchmarks.sampling_speed import describe_machine

    return f"{describe_machine()}; {os.cpu_count()} cores"


# ── the same work ──


def reward(completion: str, prompt: str, tied: bool) -> float:
    """The share of words with an even number; 1 in a tied group, which is one whose prompt begins with an even one."""
    words = completion.split()
    if tied and prompt.split()[0][-1] in "02468":
        return 1.0
    return sum(word[-1] in "02468" for word in words) / max(1, len(words))


def plain_reward(samples: Sequence[RewardSample]) -> list[float | None]:
    """For our own ``ImportedReward``."""
    return [reward(sample.completion, sample.problem.problem, tied=False) for sample in samples]


def tied_reward(samples: Sequence[RewardSample]) -> list[float | None]:
    """The same, with every other group tied."""
    return [reward(sample.completion, sample.problem.problem, tied=True) for sample in samples]


def _prompts(workload: Workload, count: int) -> list[str]:
    """Words of one token each; the first one is even in every other prompt."""
    span = VOCABULARY - 4
    return [
        " ".join(
            f"w{3 + ((row if word == 0 else 31 * row + 7 * word) % span)}" for word in range(workload.prompt_tokens)
        )
        for row in range(count)
    ]


def _write_policy(folder: Path, workload: Workload) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    torch.manual_seed(0)
    shape = {**SIZES[workload.size], "num_key_value_heads": SIZES[workload.size]["num_attention_heads"]}
    ends = {"eos_token_id": 1, "pad_token_id": 2, "bos_token_id": None}
    config = Qwen2Config(vocab_size=VOCABULARY, tie_word_embeddings=True, max_position_embeddings=1024, **shape, **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    names = ["<unk>", "<eos>", "<pad>", *(f"w{index}" for index in range(3, VOCABULARY))]
    words = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<pad>", "padding_side": "left"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def _work(system: str, name: str, iterations: int, folder: Path) -> None:
    workload, model = WORKLOADS[name], folder / "policy"
    _write_policy(model, workload)
    run = _run_ours if system == "ours" else _run_trl
    measured = run(workload, model, folder, WARM_UP + iterations)[WARM_UP:]
    (folder / "result.json").write_text(json.dumps(_summary(measured)))


def _summary(iterations: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians over iterations; each has its seconds by phase, those of the whole and its completion tokens."""
    import resource

    rates = [row["tokens"] / row["iteration"] for row in iterations]
    known = [phase for phase in PHASES if phase != "other"]
    rest = [row["iteration"] - sum(row[phase] for phase in known) for row in iterations]
    return {
        "tokens_per_s": statistics.median(rates),
        "tokens": statistics.median(row["tokens"] for row in iterations),
        **{phase: statistics.median(row[phase] for row in iterations) for phase in known},
        "other": statistics.median(rest),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def _run_ours(workload: Workload, model: Path, folder: Path, iterations: int) -> list[dict[str, float]]:
    from app.cli.main import main as command_line

    problems, figures = folder / "problems.jsonl", folder / "figures.json"
    rows = [{"problem": prompt, "answer": ""} for prompt in _prompts(workload, PROMPTS * iterations)]
    problems.write_text("\n".join(map(json.dumps, rows)))
    config = folder / "fit.json"
    config.write_text(json.dumps(_our_config(workload, model, problems, figures, iterations)))
    if command_line(["fit", "--config", str(config)]):
        raise RuntimeError("fit failed")
    return [
        {
            "generate": row["time/generate"] + row.get("time/sync", 0.0),
            "log_probs": row["time/log_probs"],
            "train": row["time/train"],
            "iteration": row["time/iteration"],
            "tokens": row["completion_tokens"],
        }
        for row in json.loads(figures.read_text())["iterations"]
    ]


def _our_config(workload: Workload, model: Path, problems: Path, figures: Path, iterations: int) -> dict[str, Any]:
    function = "tied_reward" if workload.tied else "plain_reward"
    return {
        "model": {
            "class_path": "GRPOLambdaModule",
            "init_args": {
                "policy": {"path": str(model)},
                "objective": {"application": "none", "beta": workload.beta},
                "advantages": {"clamp_negative": None},
                "optimizer": {"lr": LEARNING_RATE, "max_grad_norm": 1.0},
                "micro_batch_size": MICRO_BATCH,
            },
        },
        "data": {
            "class_path": "MathPromptDataModule",
            "init_args": {
                "train": {
                    "class_path": "JsonLinesSource",
                    "init_args": {"path": str(problems), "answer_format": "none"},
                },
                "prompts_per_iteration": PROMPTS,
                "iterations": iterations,
                "prompt": {"style": "raw"},
            },
        },
        "rollouts": {
            "group_size": GROUP,
            "sampling": {"max_new_tokens": workload.new_tokens},
            "rewards": [{"class_path": "ImportedReward", "init_args": {"path": f"benchmarks.vs_trl:{function}"}}],
        },
        "traces": {},
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(problems.parent / "runs"),
            "callbacks": [{"class_path": "benchmarks.iteration.Recorder", "init_args": {"path": str(figures)}}],
        },
    }


def _run_trl(workload: Workload, model: Path, folder: Path, iterations: int) -> list[dict[str, float]]:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig

    from benchmarks.timed_trl import TimedGRPOTrainer

    def score(completions: list[str], prompts: list[str], **_: Any) -> list[float]:
        return [reward(*pair, workload.tied) for pair in zip(completions, prompts, strict=True)]

    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=PROMPTS * GROUP // MICRO_BATCH,
        num_generations=GROUP,
        max_completion_length=workload.new_tokens,
        beta=workload.beta,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_steps=iterations,
        temperature=1.0,
        loss_type="grpo",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        report_to="tensorboard",
        save_strategy="no",
        disable_tqdm=True,
    )
    prompts = Dataset.from_list([{"prompt": prompt} for prompt in _prompts(workload, PROMPTS * iterations)])
    # AutoTokenizer would take Qwen2's own pipeline for these words (findings/auto_tokenizer_replaces_a_pipeline.sh).
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    parts = {"reward_funcs": score, "train_dataset": prompts, "processing_class": tokenizer}
    trainer = TimedGRPOTrainer(model=str(model), args=settings, **parts)
    trainer.train()
    return trainer.iterations


# ── what came out ──


def _compare(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of both systems, and the ratio of each pair of neighbours with its spread."""
    by_system = {system: [row for row in rows if row["system"] == system] for system in SYSTEMS}
    pairs = zip(*(sorted(found, key=lambda row: row["repeat"]) for found in by_system.values()), strict=True)
    ratios = [ours["tokens_per_s"] / trl["tokens_per_s"] for ours, trl in pairs]
    kept = ("tokens_per_s", "tokens", *PHASES, "peak_mib")
    return {
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        **{
            system: {name: statistics.median(row[name] for row in found) for name in kept}
            for system, found in by_system.items()
        },
    }


def _table(report: dict[str, dict[str, Any]]) -> str:
    head = (
        f"{'':3}{'':6}{'tokens/s':>10}{'ours / TRL':>24}" + "".join(f"{phase:>11}" for phase in PHASES) + "   peak MiB"
    )
    lines = [head]
    for name, found in report.items():
        low, high = found["ratio_range"]
        for system in SYSTEMS:
            ratio = f"{found['ratio']:.2f} ({low:.2f} – {high:.2f})" if system == "ours" else ""
            phases = "".join(f"{found[system][phase]:>9.3f} s" for phase in PHASES)
            speed, peak = found[system]["tokens_per_s"], found[system]["peak_mib"]
            lines.append(f"{name:3}{system:6}{speed:>10,.0f}{ratio:>24}{phases}{peak:>11,.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    started = time.perf_counter()
    code = main()
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    sys.exit(code)
