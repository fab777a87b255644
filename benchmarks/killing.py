"""Kills −9 at chosen moments of a run, and the proof that they fell there.

:class:`KillAt` sits among a run's callbacks and kills its own process where it was told to; just before, it leaves a
witness: the names of the functions that were running. :class:`KilledRun` starts such runs one after the other, each
going on from what the killed one left, and says what it found.
"""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, Trainer

import app.storage.durable
import callbacks.iteration_checkpoint
from app.policy import exporting
from app.rewards.reward import RewardSample
from app.rewards.weighted import WeightedRewards
from app.storage.checkpoints import problem_of
from callbacks.rollouts import RolloutCallback

ROOT = Path(__file__).resolve().parents[1]
MOMENTS = {
    "start": "setup",
    "rollout": "generate",
    "grading": "__call__",
    "update": "on_before_optimizer_step",
    "checkpoint": "save_checkpoint",
    "before the checkpoint takes its place": "install",
    "before the link": "link",
    "after the link": "link",
    "export": "_save_model",
    "before the export takes its place": "install",
    "evaluation": "on_validation_batch_end",
}
"""Moment → a function that is running then, in the main thread or in that which generates ahead."""
MARK = "KILLED_RUN"
"""Environment variable by which a run's processes are found, whoever their parent is then."""
LIMIT_S = 1200.0


class KillAt(Callback):
    """Kills this process at a moment of the run.

    Args:
        moment: of :data:`MOMENTS`.
        occurrence: which time that it comes, from 1.
        witness: the file to leave just before.
        rank: of the process to kill.
    """

    def __init__(self, moment: str, occurrence: int, witness: str, rank: int = 0) -> None:
        self.moment, self.occurrence, self.witness, self.rank = moment, occurrence, Path(witness), rank
        self.times, self.seconds, self.inside, self.evaluating = 0, 0.01, False, False

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if trainer.global_rank != self.rank:
            return
        rollouts = next(each for each in trainer.callbacks if isinstance(each, RolloutCallback))  # type: ignore[attr-defined]
        places: dict[str, Callable[[], None]] = {
            "start": self._now,
            "rollout": lambda: self._during(rollouts.engine.engine, "generate"),
            "grading": lambda: self._at_call(WeightedRewards, "_total"),  # a call for each completion
            "checkpoint": lambda: self._during(trainer, "save_checkpoint"),
            "before the checkpoint takes its place": lambda: self._before(callbacks.iteration_checkpoint, "install"),
            "before the link": lambda: self._around_link(before=True),
            "after the link": lambda: self._around_link(before=False),
            "export": lambda: self._during(exporting, exporting._save_model.__name__),  # mypy sees a name that is gone
            "before the export takes its place": lambda: self._before(app.storage.durable, "install", "hf"),
        }
        places.get(self.moment, lambda: None)()

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        if self.moment == "update" and trainer.global_rank == self.rank:
            self._now()

    def on_validation_start(self, *_: Any) -> None:
        self.evaluating = True

    def on_validation_end(self, *_: Any) -> None:
        self.evaluating = False

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.moment == "evaluation" and trainer.global_rank == self.rank:
            self._now()

    def _now(self) -> None:
        self.times += 1
        if self.times == self.occurrence:
            self._kill()

    def _at_call(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*arguments: Any, **named: Any) -> Any:
            self._now()
            return original(*arguments, **named)

        setattr(owner, name, call)

    def _before(self, owner: Any, name: str, of: str = "") -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def install(fresh: Path, target: Path) -> None:
            if target.name.startswith(of):
                self._now()
            original(fresh, target)

        setattr(owner, name, install)

    def _around_link(self, before: bool) -> None:
        original = os.replace

        def replace(source: Any, target: Any, **options: Any) -> None:
            is_link = Path(target).name == "last.ckpt"
            if is_link and before:
                self._now()
            original(source, target, **options)
            if is_link and not before:
                self._now()

        os.replace = replace  # type: ignore[assignment]

    def _during(self, owner: Any, name: str) -> None:
        """In the middle of a call, by the time that the call before took; where that is over too early, of the next."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*arguments: Any, **named: Any) -> Any:
            self.times += not self.evaluating
            if self.evaluating or self.times < self.occurrence:
                started = time.perf_counter()
                result = original(*arguments, **named)
                self.seconds = time.perf_counter() - started
                return result
            self.inside = True
            threading.Timer(self.seconds / 2, self._kill_inside).start()
            result = original(*arguments, **named)
            self.inside = False
            self.seconds /= 4
            return result

        setattr(owner, name, call)

    def _kill_inside(self) -> None:
        if self.inside:
            self._kill()

    def _kill(self) -> None:
        running = [_functions(frame) for frame in sys._current_frames().values()]
        if not any(MOMENTS[self.moment] in names for names in running):
            return  # over meanwhile: the next call has its turn
        self.witness.write_text(json.dumps({"moment": self.moment, "running": running, "pid": os.getpid()}))
        os.kill(os.getpid(), signal.SIGKILL)


def _functions(frame: Any) -> list[str]:
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def digit_share(samples: Sequence[RewardSample]) -> list[float | None]:
    """A reward that an untrained policy earns too: the share of digits among the characters."""
    return [sum(c.isdigit() for c in sample.completion) / max(1, len(sample.completion)) for sample in samples]


@dataclass
class Kill:
    """What one kill did.

    Attributes:
        moment: a key of :data:`MOMENTS`, or "at random".
        fell: whether the process died of it at that moment, by its witness; at random, whether it died of it.
        unfinished: names of half-written files that it left.
        intact: whether the newest checkpoint was whole, or there was none yet.
        left_s: seconds until no process of the run was left.
    """

    moment: str
    fell: bool = False
    unfinished: list[str] = field(default_factory=list)
    intact: bool = False
    left_s: float = 0.0


class KilledRun:
    """A small run that is started again after each kill, by the same command line.

    Args:
        folder: made; for its configuration and all that it writes.
        engine: ``class_path`` and ``init_args`` of the rollouts' engine.
        options: further options of the command line.
        launcher: what comes before ``main.py``.
    """

    def __init__(
        self,
        folder: Path,
        engine: dict[str, Any],
        options: Sequence[str] = (),
        launcher: Sequence[str] = (sys.executable,),
        iterations: int = 6,
    ) -> None:
        self.folder, self.options, self.launcher = folder, list(options), list(launcher)
        folder.mkdir(parents=True)
        (folder / "run.yaml").write_text(yaml.safe_dump(configuration(folder, engine, iterations)))

    def kill(self, moment: str, occurrence: int = 1, rank: int = 0) -> Kill:
        """Starts the run and has it killed at ``moment``.

        Raises:
            RuntimeError: the run ended by an error of its own.
        """
        witness = self.folder / "witness.json"
        witness.unlink(missing_ok=True)
        arguments = {"moment": moment, "occurrence": occurrence, "witness": str(witness), "rank": rank}
        callback = {"class_path": "benchmarks.killing.KillAt", "init_args": arguments}
        process = self._start("--trainer.callbacks", json.dumps([callback]))
        process.wait(LIMIT_S)
        found = self._look(moment)
        if witness.exists():
            seen = json.loads(witness.read_text())
            found.fell = any(MOMENTS[moment] in names for names in seen["running"])
        elif process.returncode:
            raise RuntimeError(f"{moment}: exit code {process.returncode}:\n{self._output()[-3000:]}")
        return found

    def kill_at_random(self, seconds: float) -> Kill:
        """Starts the run and kills it from outside after ``seconds``."""
        process = self._start()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        code = process.wait()
        found = self._look("at random")
        found.fell = code == -signal.SIGKILL
        return found

    def finish(self) -> str:
        """Runs to the end; what it printed.

        Raises:
            RuntimeError: it did not end well.
        """
        process = self._start()
        code = process.wait(LIMIT_S)
        if code:
            raise RuntimeError(f"exit code {code}:\n{self._output()[-3000:]}")
        self._wait_for_processes()
        return self._output()

    def _output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    def outcome(self) -> dict[str, Any]:
        """What must not depend on kills: exported weights, samples of evaluations, rewards by iteration."""
        from safetensors.torch import load_file

        weights = load_file(self.folder / "hf" / "model.safetensors")
        return {"weights": weights, "samples": self._samples(), "rewards": self._rewards()}

    def unfinished(self) -> list[str]:
        """Half-written files that are there."""
        return sorted(path.name for path in self.folder.rglob("*.unfinished"))

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [*self.launcher, "main.py", "fit", "--config", str(self.folder / "run.yaml"), "--ckpt_path", "last"]
        self.mark = f"{random.randrange(16**12):012x}"
        with (self.folder / "output").open("wb") as output:
            return subprocess.Popen(
                [*command, *self.options, *options],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", MARK: self.mark},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _look(self, moment: str) -> Kill:
        left_s = self._wait_for_processes()
        newest = sorted(self.folder.glob("run/version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        intact = all(problem_of(path) is None for path in newest[-1:])
        return Kill(moment, unfinished=self.unfinished(), intact=intact, left_s=left_s)

    def _wait_for_processes(self) -> float:
        started = time.monotonic()
        while processes := processes_with(self.mark):
            if time.monotonic() - started > 60:
                raise RuntimeError(f"processes {processes} are left")
            time.sleep(0.05)
        return time.monotonic() - started

    def _samples(self) -> dict[str, list[str]]:
        """By evaluation that was finished; a later run's take the place of a former one's."""
        found = {}
        for file in sorted(self.folder.glob("run/version_*/evaluation/*/samples/heldout.jsonl"), key=_version):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            untimed = [{name: row[name] for name in row if "second" not in name} for row in rows]
            found[f"{file.parts[-3]}/{file.name}"] = sorted(json.dumps(row, sort_keys=True) for row in untimed)
        return found

    def _rewards(self) -> dict[int, float]:
        """By step, out of TensorBoard's files; a later run's take the place of a former one's."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found: dict[int, float] = {}
        for file in sorted(self.folder.glob("run/version_*/events*"), key=_version):
            events = EventAccumulator(str(file)).Reload()
            if "reward" in events.Tags()["scalars"]:
                found |= {event.step: event.value for event in events.Scalars("reward")}
        return found


def _version(path: Path) -> tuple[int, str]:
    number = next(part for part in path.parts if part.startswith("version_"))
    return int(number.removeprefix("version_")), path.name


def processes_with(mark: str) -> list[int]:
    """Ids of living processes whose environment has :data:`MARK` set to ``mark``."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What two outcomes differ in; nothing where they are equal bit for bit."""
    found = [name for name in ("samples", "rewards") if one[name] != other[name]]
    mine, theirs = one["weights"], other["weights"]
    same = mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    return found if same else ["weights", *found]


def as_row(kill: Kill) -> dict[str, Any]:
    """For a report."""
    return asdict(kill)


def configuration(folder: Path, engine: dict[str, Any], iterations: int) -> dict[str, Any]:
    """A run that saves after each iteration, and evaluates and exports after each second."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    sizes = {"hidden_size": 128, "intermediate_size": 64, "max_position_embeddings": 256, "initializer_range": 0.3}
    model = {"model_type": "llama", "tie_word_embeddings": False, **heads, **sizes}
    policy = {"config": model, "tokenizer": {"kind": "synthetic"}}
    heldout = {"source": {"class_path": "SyntheticSource", "init_args": {"split": "heldout", "size": 4}}}
    data = {"train": "SyntheticSource", "prompts_per_iteration": 4, "iterations": iterations}
    reward = {"class_path": "ImportedReward", "init_args": {"path": "benchmarks.killing:digit_share"}}
    return {
        "seed_everything": 3,
        "model": {"class_path": "GRPOLambdaModule", "init_args": {"policy": policy, "optimizer": {"lr": 1e-3}}},
        "data": {
            "class_path": "MathPromptDataModule",
            "init_args": {**data, "benchmarks": {"heldout": heldout}, "benchmark_batch_size": 2},
        },
        "rollouts": {"group_size": 4, "sampling": {"max_new_tokens": 20}, "rewards": [reward], "engine": engine},
        "evaluation": {"sampling": {"temperature": 0, "max_new_tokens": 8}},
        "checkpoint": {"every_n_iterations": 1},
        "export": {"folder": str(folder / "hf"), "every_n_iterations": 2},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(folder), "val_check_interval": 2},
    }
