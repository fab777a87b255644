"""Run by test_vllm_ranks.py on each of two ranks: a sharded policy; a sharded separate engine, then colocated ones."""

import copy

import torch
from torch.distributed.fsdp import fully_shard

from app.rollout.vllm_engine import VLLMEngine
from tests.rollout.vllm_support import owner, perturb, request, worst_difference


def main() -> None:
    """Prints one line a placement once its rollouts are right on this rank."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
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
        answers = engine.generate(copy.copy(asked))
        assert len(answers) == len(asked)
        for one, rows in zip(asked, answers, strict=True):
            assert len(rows) == one.n
            assert worst_difference(whole, one, rows) < 1e-5
        engine.close()
        torch.distributed.barrier()  # the trainer's process group is still there
        print(f"rank {rank} {placement} right", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
