"""Every family of causal language models through the application: ``python -m benchmarks.families [OPTIONS]``.

A family is a small model with random weights from transformers' own configuration class. Its checks are the columns of
the table: ok, or the one line that refused it before anything slow, or X and what went wrong. Each family is a process,
each check a fork of it; results are kept as one JSON file a family, so that a sweep goes on where it stopped.

    python -m benchmarks.families --results runs/families --write docs/families.md
    python -m benchmarks.families --results runs/families --only qwen3_moe --again
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from app.errors import ConfigurationError
from benchmarks.family_configs import COMMON, small_config
from benchmarks.family_table import table

VLLM = ("vllm colocated", "vllm separate")
TIMEOUT_S = 300
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
COMPLETIONS = [[20, 21, 22], [23, 24, 25, 26, 27], [28, 29]]
EXACT = 1e-3


class Failed(Exception):
    """A check came out wrong: what it says goes into the table behind an X."""


def digit_share(samples: Sequence[Any]) -> list[float | None]:
    """A reward that random weights earn, and that seldom ties a group: the share of digits."""
    return [sum(c.isdigit() for c in sample.completion) / max(1, len(sample.completion)) for sample in samples]


class Family:
    """One family's files and checks.

    Args:
        kind: its ``model_type``.
        folder: of its own.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.model = folder / "model"

    def checks(self) -> dict[str, Callable[[], None]]:
        """By column; a later one may read what an earlier one exported."""
        return {
            "log-probs": self.log_probs,
            "engine": self.engine,
            "fit and export": self.fit_and_export,
            "lora": self.lora,
            "gradient checkpointing": self.gradient_checkpointing,
            "dry run": self.dry_run,
            "fsdp2 from path": self.fsdp2_from_path,
            "fsdp2 from config": self.fsdp2_from_config,
            VLLM[0]: lambda: self.fit("colocated", self.vllm_engine("colocated")),
            VLLM[1]: lambda: self.fit("separate", self.vllm_engine("separate")),
        }

    def build(self) -> None:
        """Writes the model and a tokenizer of its vocabulary as a Hugging Face folder."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from app.policy.models import NewTokenizerSettings, PolicySettings, load_tokenizer

        tokenizer = load_tokenizer(PolicySettings(config={"model_type": "llama"}, tokenizer=NewTokenizerSettings()))
        self.config = small_config(self.kind, len(tokenizer))
        config = AutoConfig.for_model(**self.config)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config.get_text_config(), name, getattr(tokenizer, name))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        model(input_ids=torch.tensor(PROMPTS[:1]), use_cache=False)
        tokenizer.save_pretrained(self.model)
        model.save_pretrained(self.model)

    def policy(self) -> Any:
        """The model as the application loads it, without dropout, marked for the padding that it bears."""
        import torch

        from app.policy.dropout import switch_off_dropout
        from app.policy.models import PolicySettings, load_policy, load_tokenizer
        from app.policy.probe import TrainingProbe

        settings = PolicySettings(path=str(self.model))
        policy = load_policy(settings)
        switch_off_dropout(policy)
        TrainingProbe(load_tokenizer(settings), torch.float32, torch.device("cpu")).check(policy)
        return policy

    def log_probs(self) -> None:
        """Of a ragged batch, against each row alone."""
        import torch

        from app.policy.logprobs import token_log_probs
        from app.policy.packing import build

        policy = self.policy()
        with torch.no_grad():
            rows = token_log_probs(policy, build(PROMPTS, COMPLETIONS, pad_id=0)).log_probs
            for row, prompt, completion in zip(rows, PROMPTS, COMPLETIONS, strict=True):
                _close(row[: len(completion)], _alone(policy, prompt, completion), "a row differs from itself alone")

    def engine(self) -> None:
        """Sampled log-probs of the transformers engine, against each row alone."""
        import torch

        from app.engines.engine import GenerationRequest, SamplingSettings
        from app.engines.transformers_engine import TransformersEngine
        from app.policy.models import PolicySettings, load_policy, load_tokenizer
        from benchmarks.engines import Module

        settings = PolicySettings(path=str(self.model))
        policy, engine = load_policy(settings), TransformersEngine()
        engine.start(Module(policy, load_tokenizer(settings)))
        sampling = SamplingSettings(max_new_tokens=12)
        requests = [GenerationRequest(prompt, 3, seed, sampling, ()) for seed, prompt in enumerate(PROMPTS)]
        for request, group in zip(requests, engine.generate(requests), strict=True):
            for completion in group:
                whole = _alone(policy, request.prompt_ids, completion.token_ids)
                _close(torch.tensor(completion.log_probs), whole, "what the engine draws differs from the row whole")

    def fit_and_export(self) -> None:
        """The export holds every entry of the trained policy's state, bit for bit, as transformers reads it."""
        import torch
        from transformers import AutoModelForCausalLM

        self.fit("fit")
        held = _checkpoint(self.folder / "fit")
        exported = AutoModelForCausalLM.from_pretrained(self.folder / "fit" / "hf").state_dict()
        started = AutoModelForCausalLM.from_pretrained(self.model).state_dict()
        if missing := sorted(set(held) ^ set(exported)):
            raise Failed(f"the export and the policy do not share {missing[0]}")
        for name, value in exported.items():
            if not torch.equal(held[name], value):
                raise Failed(f"{name} is exported with other values")
        if all(torch.equal(value, started[name]) for name, value in exported.items()):
            raise Failed("nothing was trained")

    def lora(self) -> None:
        """The merged export is read whole, and differs from where training began."""
        import torch
        from transformers import AutoModelForCausalLM

        self.fit("lora", more={"model": {"init_args": {"policy": {"lora": {}}}}})
        model, report = AutoModelForCausalLM.from_pretrained(self.folder / "lora" / "hf", output_loading_info=True)
        if lost := sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]):
            raise Failed(f"the merged export and its model do not share {lost[0]}")
        started = AutoModelForCausalLM.from_pretrained(self.model).state_dict()
        if all(torch.equal(value, started[name]) for name, value in model.state_dict().items()):
            raise Failed("the merged export holds nothing of the adapters")

    def gradient_checkpointing(self) -> None:
        """The same weights as without."""
        self.fit("checkpointing", more={"model": {"init_args": {"policy": {"gradient_checkpointing": True}}}})
        _same_weights(self.folder / "fit" / "hf", self.folder / "checkpointing" / "hf")

    def dry_run(self) -> None:
        """Is printed."""
        self.fit("dry", extra=["--dry_run"])

    def fsdp2_from_path(self) -> None:
        """One gloo rank: the same weights as one process."""
        self.fit("fsdp2", more=_FSDP2)
        _same_weights(self.folder / "fit" / "hf", self.folder / "fsdp2" / "hf")

    def fsdp2_from_config(self) -> None:
        """A new model: the same weights as one process draws and trains."""
        policy = {"path": None, "config": self.config, "tokenizer": {"kind": "synthetic"}}
        new = {"model": {"init_args": {"policy": policy}}}
        self.fit("new", more=new)
        self.fit("new-fsdp2", more=_merged(new, _FSDP2))
        _same_weights(self.folder / "new" / "hf", self.folder / "new-fsdp2" / "hf")

    @staticmethod
    def vllm_engine(placement: str) -> dict[str, Any]:
        """Its syncs prove the weights, and its first rollout is compared with the trainer."""
        return {"class_path": "VLLMEngine", "init_args": {"placement": placement, "kv_cache_gib": 0.25}}

    def fit(
        self,
        name: str,
        engine: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        """Two iterations of the real ``fit`` below ``name``; what it refuses in a line is passed on."""
        from app.cli.main import main

        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        settings = _merged(_settings(self.model, folder, engine), more or {})
        (folder / "run.json").write_text(json.dumps(settings))
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = main(["fit", "--config", str(folder / "run.json"), *extra])
        line = _last_line(said.getvalue()).removesuffix(f" (in {folder / 'run.json'})")
        if code == 2:
            raise ConfigurationError(line)
        if code != 0:
            raise Failed(f"exit code {code}: {line}")


_FSDP2: dict[str, Any] = {"trainer": {"strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}}}


def _settings(model: Path, folder: Path, engine: dict[str, Any] | None) -> dict[str, Any]:
    reward = {"class_path": "ImportedReward", "init_args": {"path": "benchmarks.families:digit_share"}}
    data = {"train": {"class_path": "SyntheticSource"}, "prompts_per_iteration": 4, "iterations": 2}
    temperature = 2.0 if engine else 8.0  # vLLM takes no higher one
    sampling = {"max_new_tokens": 12, "temperature": temperature}
    rollouts = {"group_size": 4, "sampling": sampling, "rewards": [reward]}
    return {
        "seed_everything": 3,
        "model": {
            "class_path": "GRPOLambdaModule",
            "init_args": {"policy": {"path": str(model)}, "optimizer": {"lr": 1e-3, "warmup_iterations": 0}},
        },
        "data": {"class_path": "MathPromptDataModule", "init_args": data},
        "rollouts": rollouts | ({"engine": engine} if engine else {}),
        "checkpoint": {"every_n_iterations": 100, "folder": str(folder / "checkpoints")},
        "export": {"folder": str(folder / "hf")},
        "trainer": {"accelerator": "cpu", "devices": 1, "default_root_dir": str(folder), "enable_progress_bar": False},
    }


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {name: value for name, value in other.items() if not isinstance(value, dict)}
    nested = {name: _merged(one.get(name) or {}, value) for name, value in other.items() if isinstance(value, dict)}
    return one | both | nested


def _alone(policy: Any, prompt: Sequence[int], completion: Sequence[int]) -> Any:
    import torch

    row = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        every = policy(input_ids=row, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return every.gather(-1, row[0, 1:, None])[len(prompt) - 1 :, 0]


def _close(one: Any, other: Any, what: str) -> None:
    distance = float((one - other).abs().max())
    if not distance <= EXACT:
        raise Failed(f"{what} by {distance:.2g} nats")


def _checkpoint(folder: Path) -> dict[str, Any]:
    """The policy's part of the last checkpoint's state."""
    import torch

    saved = torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=False)
    state = saved["state_dict"]
    return {name.removeprefix("policy."): value for name, value in state.items() if name.startswith("policy.")}


def _same_weights(one: Path, other: Path) -> None:
    import torch
    from safetensors.torch import load_file

    first, second = (_merged_files(load_file(file) for file in each.glob("*.safetensors")) for each in (one, other))
    if differ := sorted(set(first) ^ set(second)):
        raise Failed(f"only one of the exports holds {differ[0]}")
    for name, value in first.items():
        if not torch.allclose(value, second[name], rtol=1e-3, atol=1e-4):
            raise Failed(f"{name} differs by {float((value - second[name]).abs().max()):.2g}")


def _merged_files(files: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for file in files for name, value in file.items()}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("error: ")] or text.split("\n")[-2:-1] or ["?"]
    return lines[-1].removeprefix("error: ")


def run_family(kind: str, folder: Path, columns: Sequence[str]) -> dict[str, str]:
    """The cells of one family, each from a fork of this process."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    family = Family(kind, folder)
    try:
        family.build()
    except Exception as error:  # noqa: BLE001  whatever it is, the table says so
        return {"built": f"not built small: {_one_line(error)}"}
    checks = family.checks()
    return {column: _forked(checks[column], folder / "cell.txt") for column in columns}


def _forked(check: Callable[[], None], answer: Path) -> str:
    """What a check comes to in a process of its own, which may crash or hang."""
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        answer.write_text(_judged(check))
        os._exit(0)
    deadline = time.monotonic() + TIMEOUT_S
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return f"X: no answer in {TIMEOUT_S} s"
        time.sleep(0.05)
    return answer.read_text() if answer.is_file() else "X: the process died"


def _judged(check: Callable[[], None]) -> str:
    try:
        check()
    except ConfigurationError as error:
        return _one_line(error, named=False)
    except Failed as error:
        return f"X: {error}"
    except BaseException as error:  # noqa: BLE001  whatever it is, the table says so
        traceback.print_exc()
        return f"X: {_one_line(error)}"
    return "ok"


def _one_line(error: BaseException, named: bool = True) -> str:
    text = " ".join(str(error).split())[:240]
    return f"{type(error).__name__}: {text}" if named else text


def main() -> None:
    """Runs what is missing, or writes the table of what there is."""
    options = _options()
    if options.family:
        cells = run_family(options.family, options.results / "work" / options.family, options.columns)
        (options.results / f"{options.family}.part").write_text(json.dumps(cells))
        return
    for kind in options.only or _kinds():
        _sweep(kind, options)
    if options.write:
        files = sorted(options.results.glob("*.json"), key=lambda path: (path.stem not in COMMON, path.stem))
        results = {path.stem: json.loads(path.read_text()) for path in files}
        command = "python -m benchmarks.families --results FOLDER --write docs/families.md"
        options.write.write_text(table(results, list(Family("", Path()).checks()), command))


def _kinds() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    return [*COMMON, *(kind for kind in NAMES if kind not in COMMON)]


def _sweep(kind: str, options: argparse.Namespace) -> None:
    """The columns of one family that have no result yet, in a process of its own."""
    kept = options.results / f"{kind}.json"
    done = json.loads(kept.read_text()) if kept.is_file() and not options.again else {}
    columns = [column for column in options.columns if column not in done]
    if not columns or "built" in done:
        return
    command = [sys.executable, "-m", "benchmarks.families", "--results", str(options.results), "--family", kind]
    part = options.results / f"{kind}.part"
    with (options.results / f"{kind}.log").open("a") as log:
        subprocess.run([*command, "--columns", *columns], stdout=log, stderr=log, check=False)
    done |= json.loads(part.read_text()) if part.is_file() else dict.fromkeys(columns, "X: the process died")
    part.unlink(missing_ok=True)
    kept.write_text(json.dumps(done, indent=1) + "\n")
    print(kind, done, flush=True)


def _options() -> argparse.Namespace:
    columns = list(Family("", Path()).checks())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("runs/families"), help="a JSON file a family")
    parser.add_argument("--only", nargs="+", help="families; by default all, the most common first")
    parser.add_argument("--columns", nargs="+", choices=columns, default=columns)
    parser.add_argument("--again", action="store_true", help="also what has a result")
    parser.add_argument("--write", type=Path, help="the page, from all results there are")
    parser.add_argument("--family", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return options


if __name__ == "__main__":
    main()
