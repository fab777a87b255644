"""Runs on every rank of a launch: the trainings that a file asks for, one after the other.

torchrun --nproc-per-node 2 -m tests.distributed.job jobs.json
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from lightning.pytorch.strategies import ModelParallelStrategy

from app.algorithm.advantages import AdvantageSettings
from app.engines.engine import SamplingSettings
from app.policy.lora import LoraSettings
from app.policy.models import PolicySettings
from app.policy.optimizers import OptimizerSettings
from app.policy.sharding.gathering import whole_weights
from app.rewards.imported import ImportedReward
from app.rewards.reward import RewardSample
from app.rollout.collection import TruncationSettings
from app.rollout.schedule import ScheduleSettings
from app.rollout.update_plan import UpdateSettings
from callbacks import BenchmarkEvaluation, CreditAudit, HFExport, IterationCheckpoint, TraceLogging
from tests.distributed.fsdp_on_cpu import FSDPOnCPU
from tests.running import (
    always_one,
    digit_share,
    make_benchmarks,
    make_data,
    make_module,
    make_rollouts,
    make_trainer,
    policy_settings,
)

GROUPS: dict[str, Any] = {
    "advantages": AdvantageSettings,
    "updates": UpdateSettings,
    "schedule": ScheduleSettings,
    "truncation": TruncationSettings,
}


def grouped(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file, with what belongs together as the objects that the constructors take."""
    return {name: GROUPS[name](**value) if name in GROUPS else value for name, value in settings.items()}


def strategy(name: str, sharded_checkpoint: bool, **options: Any) -> Any:
    if name == "fsdp2":
        return ModelParallelStrategy(save_distributed_checkpoint=sharded_checkpoint, **options)
    if name == "fsdp":
        return FSDPOnCPU(state_dict_type="sharded" if sharded_checkpoint else "full", **options)
    return {"single": "auto", "ddp": "ddp"}[name]


def tied_on_rank_one(samples: Sequence[RewardSample]) -> list[float | None]:
    """Every group of the second rank is tied, none of the first's."""
    if torch.distributed.get_rank() == 1:
        return always_one(samples)
    return digit_share(samples)


class Recorder(Callback):
    """What a run computes, seen from one rank."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"metrics": [], "lengths": [], "trained": [], "dtypes": set(), "logits": set()}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen["initial"] = whole_weights(pl_module.policy, everywhere=True)
        self.seen["end_token_ids"] = pl_module.end_token_ids
        head = pl_module.policy.get_output_embeddings()
        self._hook = head.register_forward_hook(lambda module, given, made: self.seen["logits"].add(made.dtype))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen["metrics"].append({name: float(value) for name, value in trainer.callback_metrics.items()})
        experience = pl_module.experience
        self.seen["lengths"].append([len(row.token_ids) for row in experience.rollout.rows])
        self.seen["trained"].append([len(parts) for parts in experience.plan.micro_batches])
        computed = (experience.old_log_probs, experience.ref_log_probs, pl_module.last_log_ratio)
        self.seen["dtypes"] |= {tensor.dtype for tensor in computed if tensor is not None}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._hook.remove()
        policy = pl_module.policy
        self.seen["weights"] = whole_weights(policy, everywhere=True)
        self.seen["master_dtypes"] = {parameter.dtype for parameter in policy.parameters()}
        self.seen["autocast"] = torch.is_autocast_enabled("cpu")
        self.seen["kept"] = sum(getattr(p, "_local_tensor", p).numel() for p in policy.parameters())


def make(job: dict[str, Any]) -> tuple[Any, Any, list[Callback]]:
    """Module, data and callbacks as ``job`` says."""
    folder = Path(job["folder"])
    optimizer = OptimizerSettings(**({"lr": 1e-3, "warmup_iterations": 2} | job.get("optimizer", {})))
    lora = LoraSettings(**job["lora"]) if "lora" in job else None
    policy = (
        PolicySettings(path=job["path"])
        if "path" in job
        else policy_settings(job.get("kind", "llama"), **job.get("config", {}))
    )
    policy = replace(policy, lora=lora, **job.get("policy", {}))
    module = make_module(job.get("objective"), optimizer=optimizer, policy=policy, **grouped(job.get("module", {})))
    benchmarks = {"benchmarks": make_benchmarks(5), "benchmark_batch_size": 2} if job.get("evaluate") else {}
    sampling = SamplingSettings(max_new_tokens=job.get("max_new_tokens", 10))
    score = ImportedReward(path=job.get("reward", "tests.running:digit_share"))
    callbacks: list[Callback] = [make_rollouts(rewards=[score], sampling=sampling, **grouped(job.get("rollouts", {})))]
    if "audit" in job:
        callbacks.insert(0, CreditAudit(**job["audit"]))
    if job.get("traces"):
        callbacks.append(TraceLogging())
    if benchmarks:
        callbacks.append(BenchmarkEvaluation(SamplingSettings(temperature=0.0, max_new_tokens=6), grader_workers=1))
    if "save_every" in job:
        callbacks.append(IterationCheckpoint(job["save_every"], keep=9, folder=str(folder / "checkpoints")))
    if job.get("export"):
        callbacks.append(HFExport(str(folder / "hf")))
    return module, make_data(iterations=job.get("iterations", 4), **benchmarks), callbacks


def run(job: dict[str, Any]) -> None:
    """Trains as ``job`` says; rank r writes ``<folder>/rank<r>.pt``."""
    folder, recorder = Path(job["folder"]), Recorder()
    folder.mkdir(parents=True, exist_ok=True)
    module, data, callbacks = make(job)
    trainer = make_trainer(
        folder,
        [*callbacks, recorder],
        strategy=strategy(job["strategy"], job.get("sharded_checkpoint", True), **job.get("strategy_options", {})),
        devices=job["ranks"],
        precision=job.get("precision", "32-true"),
    )
    trainer.fit(module, datamodule=data, ckpt_path=job.get("resume"), weights_only=True)
    torch.save(recorder.seen, folder / f"rank{trainer.global_rank}.pt")


def main(jobs: Path) -> None:
    for job in json.loads(jobs.read_text()):
        run(job)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
