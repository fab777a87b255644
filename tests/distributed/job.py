"""Runs on every rank of a launch: the trainings that ``tests/distributed/launch.py`` asked for, one after the other.

    torchrun --nproc-per-node 2 -m tests.distributed.job jobs.json
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from app.policy.lora import LoraSettings
from app.policy.optimizers import OptimizerSettings
from app.policy.sharding import whole_weights
from app.rollout.engine import SamplingSettings
from callbacks import BenchmarkEvaluation, HFExport, IterationCheckpoint
from tests.running import make_benchmarks, make_data, make_module, make_rollouts, make_trainer, policy_settings, reward


class FSDPOnCPU(FSDPStrategy):
    """Lightning refuses FullyShardedDataParallel without a GPU by the strategy's type alone."""


def strategy(name: str, sharded_checkpoint: bool) -> Any:
    if name == "fsdp2":
        return ModelParallelStrategy(save_distributed_checkpoint=sharded_checkpoint)
    if name == "fsdp":
        return FSDPOnCPU(state_dict_type="sharded" if sharded_checkpoint else "full")
    return {"single": "auto", "ddp": "ddp"}[name]


class Recorder(Callback):
    """Each iteration's metrics and completion lengths of this rank."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.lengths: list[list[int]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        rows = pl_module.experience.rollout.rows
        self.lengths.append([len(row.token_ids) for row in rows])


def run(job: dict[str, Any]) -> None:
    """Trains as ``job`` says; rank r writes ``<folder>/result<r>.pt``."""
    folder = Path(job["folder"])
    recorder = Recorder()
    optimizer = OptimizerSettings(**({"lr": 1e-3, "warmup_iterations": 2} | job.get("optimizer", {})))
    lora = LoraSettings(**job["lora"]) if "lora" in job else None
    policy = replace(policy_settings(job.get("kind", "llama")), lora=lora, **job.get("policy", {}))
    module = make_module(job.get("objective"), optimizer=optimizer, policy=policy, **job.get("module", {}))
    benchmarks = {"benchmarks": make_benchmarks(5), "benchmark_batch_size": 2} if job.get("evaluate") else {}
    data = make_data(iterations=job.get("iterations", 4), **benchmarks)
    callbacks: list[Callback] = [
        make_rollouts(
            rewards=[reward(job.get("reward", "digit_share"))],
            sampling=SamplingSettings(max_new_tokens=job.get("max_new_tokens", 10)),
        ),
        recorder,
    ]
    if job.get("evaluate"):
        callbacks.append(BenchmarkEvaluation(SamplingSettings(temperature=0.0, max_new_tokens=6), grader_workers=1))
    if job.get("save_every"):
        callbacks.append(IterationCheckpoint(job["save_every"], keep=9, folder=str(folder / "checkpoints")))
    if job.get("export"):
        callbacks.append(HFExport(str(folder / "hf")))
    trainer = make_trainer(
        folder,
        callbacks,
        strategy=strategy(job["strategy"], job.get("sharded_checkpoint", True)),
        devices=job["ranks"],
        precision=job.get("precision", "32-true"),
    )
    trainer.fit(module, datamodule=data, ckpt_path=job.get("resume"), weights_only=True)
    result = {
        "metrics": recorder.metrics,
        "lengths": recorder.lengths,
        "weights": whole_weights(module.policy, everywhere=True),
        "dtypes": {str(parameter.dtype) for parameter in module.policy.parameters()},
        "local": sum(getattr(p, "_local_tensor", p).numel() for p in module.policy.parameters()),
    }
    torch.save(result, folder / f"result{trainer.global_rank}.pt")


def main(jobs: Path) -> None:
    for job in json.loads(jobs.read_text()):
        run(job)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
