"""Run by test_vllm_ranks.py on each of two ranks: a sharded policy; a sharded separate engine, then colocated ones."""

import copy
import os

import torch
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from app.engines.engine import Completion, GenerationRequest
from app.engines.faults import GuardedEngine
from app.engines.vllm.engine import VLLMEngine
from tests.engines.vllm.support import Owner, owner, perturb, request, worst_difference


def check(whole: PreTrainedModel, asked: list[GenerationRequest], answers: list[list[Completion]]) -> None:
    """The answers are this rank's, and the policy's."""
    assert len(answers) == len(asked)
    for one, rows in zip(asked, answers, strict=True):
        assert len(rows) == one.n
        assert worst_difference(whole, one, rows) < 1e-5


def generate_although_rank_one_fails(
    engine: VLLMEngine, module: Owner, asked: list[GenerationRequest]
) -> list[list[Completion]]:
    """vLLM raises once on rank 1 alone; both ranks restart their engines."""
    guarded = GuardedEngine(engine)
    guarded.sync(module)
    if torch.distributed.get_rank() == 1:

        def run_out_of_memory(requests: list[GenerationRequest]) -> None:
            raise RuntimeError("out of memory, for a test")

        engine._backend.engine.generate = run_out_of_memory
    answers = guarded.generate(asked)
    assert guarded.restarts == 1
    return answers


def main() -> None:
    """Prints one line a placement once its rollouts are right on this rank."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    del os.environ["RANK"], os.environ["LOCAL_RANK"]  # as after Lightning's own launch, or SLURM's
    module = owner()
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for layer in module.policy.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module.policy, mesh=mesh)
    asked = [request((5 + rank, 6), n=2, seed=rank), *([request((9,), n=1)] if rank else [])]
    for placement in ("separate", "colocated"):
        whole = owner().policy
        perturb(whole)
        with torch.no_grad():  # the sharded policy takes the same step
            for sharded, full in zip(module.policy.parameters(), whole.parameters(), strict=True):
                local = torch.distributed.tensor.distribute_tensor(full.detach(), mesh, sharded.placements)
                sharded.copy_(local)
        workers = 2 if placement == "separate" else 1
        engine = VLLMEngine(placement=placement, tensor_parallel_size=workers, kv_cache_gib=0.25)
        engine.start(module)
        engine.sync(module)
        check(whole, asked, engine.generate(copy.copy(asked)))
        if placement == "colocated":
            check(whole, asked, generate_although_rank_one_fails(engine, module, asked))
        engine.close()
        torch.distributed.barrier()  # the trainer's process group is still there
        print(f"rank {rank} {placement} right", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
