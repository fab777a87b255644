"""Two ranks learn what one process does with the same global batch, under every strategy, with gloo on CPUs.

Sums run in another order on other numbers of ranks: metrics agree to 1e-4 (relative), weights to 2e-6 after 4
iterations of up to 1e-3 each. Runs on the same ranks agree bit for bit.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.policy.checkpoints import read_weights
from app.policy.models import load_policy
from tests.distributed.job import run
from tests.distributed.launch import launch, result, untimed
from tests.running import equal_weights, make_module, policy_settings

pytestmark = pytest.mark.slow
JOB: dict[str, Any] = {
    "objective": {"beta": 0.1, "lam": 0.9, "reduction": "token"},
    "module": {"advantage_scale": "batch", "micro_batch_size": 3, "mini_batches": 2, "updates_per_rollout": 2},
    "optimizer": {"weight_decay": 0.1, "max_grad_norm": 0.5},
    "max_new_tokens": 16,
}
SAVED = "checkpoints/iteration-000002.ckpt"
LORA = {"lora": {"r": 4, "alpha": 8.0}}
UNEVEN = {
    "reward": "tests.distributed.job:tied_on_rank_one",
    "module": {"micro_batch_size": 3},
    "max_new_tokens": 300,
    "iterations": 2,
    "evaluate": True,
}
LOW = {"objective": {"beta": 0.1}, "module": {}, "iterations": 1}


def agree(one: dict[str, Any], other: dict[str, Any], first: int = 0) -> None:
    """``other`` saw and learned what ``one`` did from iteration ``first`` on."""
    assert len(other["metrics"]) == len(one["metrics"]) - first
    for mine, theirs in zip(one["metrics"][first:], other["metrics"], strict=True):
        names = untimed(mine).keys() & theirs.keys()
        assert {"policy_loss", "kl", "grad_norm", "reward"} <= names
        assert {name: theirs[name] for name in names} == pytest.approx(
            {name: mine[name] for name in names}, rel=1e-4, abs=2e-5
        )
    assert one["weights"].keys() == other["weights"].keys()
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], tensor, rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs on one process."""
    root = tmp_path_factory.mktemp("single")
    common = {"strategy": "single", "ranks": 1}
    run({**JOB, **common, "folder": str(root / "plain"), "save_every": 2, "export": True})
    run({**JOB, **common, "folder": str(root / "tied-embeddings"), "kind": "qwen2"})
    run({**JOB, **common, **LORA, "folder": str(root / "lora")})
    return root


@pytest.fixture(scope="module")
def ranks(single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs on two ranks and of one that goes on with theirs; a folder a strategy."""
    root = tmp_path_factory.mktemp("ranks")
    launch([*ddp_jobs(root / "ddp"), *fsdp2_jobs(root / "fsdp2", single), *fsdp_jobs(root / "fsdp")], 2, root)
    saved = str(root / "fsdp2/sharded" / SAVED)
    launch([{**JOB, "strategy": "fsdp2", "folder": str(root / "fsdp2/one-rank"), "resume": saved}], 1, root)
    return root


def ddp_jobs(root: Path) -> list[dict[str, Any]]:
    plain = {**JOB, "strategy": "ddp"}
    return [
        {**plain, "folder": str(root / "plain"), "save_every": 2},
        {**plain, **UNEVEN, "folder": str(root / "uneven")},
        {**plain, "folder": str(root / "resumed"), "resume": str(root / "plain" / SAVED)},
    ]


def fsdp2_jobs(root: Path, single: Path) -> list[dict[str, Any]]:
    plain = {**JOB, "strategy": "fsdp2"}
    whole = {**plain, "sharded_checkpoint": False}
    return [
        {**plain, "folder": str(root / "sharded"), "save_every": 2, "export": True},
        {**whole, "folder": str(root / "whole"), "save_every": 2, "export": True},
        {**plain, "folder": str(root / "sharded-resumed"), "resume": str(root / "sharded" / SAVED)},
        {**whole, "folder": str(root / "whole-resumed"), "resume": str(root / "whole" / SAVED)},
        {**plain, "folder": str(root / "from-single"), "resume": str(single / "plain" / SAVED)},
        {**plain, **UNEVEN, "folder": str(root / "uneven")},
        {**plain, "folder": str(root / "tied-embeddings"), "kind": "qwen2"},
        {**plain, "folder": str(root / "from-files"), "path": str(single / "plain/hf"), "iterations": 1},
        {**plain, "folder": str(root / "from-sharded"), "path": str(root / "sharded" / SAVED), "iterations": 1},
        {**plain, **LOW, "folder": str(root / "low"), "precision": "bf16-true"},
        {**plain, **LOW, "folder": str(root / "mixed"), "precision": "bf16-mixed"},
        {**plain, **LORA, "folder": str(root / "lora"), "save_every": 2, "export": True},
        {**plain, **LORA, "folder": str(root / "lora-resumed"), "resume": str(root / "lora" / SAVED)},
    ]


def fsdp_jobs(root: Path) -> list[dict[str, Any]]:
    plain = {**JOB, "strategy": "fsdp"}
    return [
        {**plain, "folder": str(root / "sharded"), "save_every": 2, "export": True},
        {**plain, "folder": str(root / "sharded-resumed"), "resume": str(root / "sharded" / SAVED)},
        {**plain, **UNEVEN, "folder": str(root / "uneven")},
        {**plain, **LOW, "folder": str(root / "low"), "precision": "bf16-true"},
    ]


def test_ddp_is_one_process(single: Path, ranks: Path) -> None:
    agree(result(single / "plain"), result(ranks / "ddp" / "plain"))
    assert result(ranks / "ddp" / "plain")["kept"] == result(single / "plain")["kept"]


def test_fsdp2_is_one_process_with_half_of_the_weights_on_each_rank(single: Path, ranks: Path) -> None:
    one, seen = result(single / "plain"), [result(ranks / "fsdp2" / "sharded", rank) for rank in range(2)]
    for rank in seen:
        agree(one, rank)
        assert rank["kept"] == one["kept"] // 2
    assert equal_weights(seen[0]["weights"], seen[1]["weights"])


def test_fsdp_is_one_process_with_half_of_the_weights_on_each_rank(single: Path, ranks: Path) -> None:
    one, other = result(single / "plain"), result(ranks / "fsdp" / "sharded")
    agree(one, other)
    assert other["kept"] == pytest.approx(one["kept"] / 2, rel=0.01)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp"])
def test_uneven_lengths_and_a_rank_whose_groups_are_all_tied(ranks: Path, strategy: str) -> None:
    """Ranks decode for different numbers of steps and evaluate different numbers of problems; none waits for ever."""
    seen = [result(ranks / strategy / "uneven", rank) for rank in range(2)]
    assert any(max(one) != max(other) for one, other in zip(*(rank["lengths"] for rank in seen), strict=True))
    assert equal_weights(seen[0]["weights"], seen[1]["weights"])
    assert not equal_weights(seen[0]["weights"], seen[0]["initial"])
    assert seen[0]["metrics"][0]["frac_reward_zero_std"] == 0.5
    assert seen[0]["metrics"][0]["updates/skipped"] == 0


def test_tied_embeddings_stay_tied_in_shards(single: Path, ranks: Path) -> None:
    one, other = result(single / "tied-embeddings"), result(ranks / "fsdp2" / "tied-embeddings")
    agree(one, other)
    assert "lm_head.weight" not in other["weights"]


def test_new_weights_are_drawn_shard_by_shard_as_for_one_process(single: Path, ranks: Path) -> None:
    for kind, name in (("llama", "sharded"), ("qwen2", "tied-embeddings")):
        drawn = dict(load_policy(policy_settings(kind), make_module().seed).named_parameters())
        assert equal_weights(drawn, result(ranks / "fsdp2" / name)["initial"])
    assert equal_weights(result(single / "plain")["initial"], result(ranks / "fsdp" / "sharded")["initial"])


def test_files_and_checkpoints_are_read_shard_by_shard(single: Path, ranks: Path) -> None:
    assert equal_weights(
        load_file(single / "plain/hf/model.safetensors"), result(ranks / "fsdp2" / "from-files")["initial"]
    )
    trained = read_weights(str(ranks / "fsdp2" / "sharded/checkpoints/iteration-000002.ckpt"))
    assert equal_weights(trained, result(ranks / "fsdp2" / "from-sharded")["initial"])


@pytest.mark.parametrize("name", ["sharded", "whole"])
def test_fsdp2_resumes_on_two_ranks_bit_for_bit(ranks: Path, name: str) -> None:
    uninterrupted, resumed = result(ranks / "fsdp2" / name), result(ranks / "fsdp2" / f"{name}-resumed")
    assert equal_weights(uninterrupted["weights"], resumed["weights"])
    assert untimed(uninterrupted["metrics"][-1]) == untimed(resumed["metrics"][-1])


def test_ddp_and_fsdp_resume_on_two_ranks_bit_for_bit(ranks: Path) -> None:
    assert equal_weights(result(ranks / "ddp" / "plain")["weights"], result(ranks / "ddp" / "resumed")["weights"])
    assert equal_weights(
        result(ranks / "fsdp" / "sharded")["weights"], result(ranks / "fsdp" / "sharded-resumed")["weights"]
    )


def test_checkpoints_of_two_ranks_resume_on_one(single: Path, ranks: Path, tmp_path: Path) -> None:
    agree(result(single / "plain"), result(ranks / "fsdp2" / "one-rank"), first=2)
    for number, folder in enumerate((ranks / "fsdp2" / "whole", ranks / "ddp" / "plain")):
        saved = str(folder / "checkpoints/iteration-000002.ckpt")
        run({**JOB, "strategy": "single", "ranks": 1, "folder": str(tmp_path / str(number)), "resume": saved})
        agree(result(single / "plain"), result(tmp_path / str(number)), first=2)


def test_a_checkpoint_of_one_process_resumes_in_shards(single: Path, ranks: Path) -> None:
    """Also its optimiser states, of which matrices and vectors are numbered apart."""
    agree(result(single / "plain"), result(ranks / "fsdp2" / "from-single"), first=2)


@pytest.mark.parametrize("name", ["sharded", "whole"])
def test_the_export_is_the_checkpoint_bit_for_bit(ranks: Path, name: str) -> None:
    exported = load_file(ranks / "fsdp2" / name / "hf/model.safetensors")
    assert equal_weights(exported, read_weights(str(ranks / "fsdp2" / name / "checkpoints/iteration-000004.ckpt")))


def test_fsdp_exports_what_it_learned(ranks: Path) -> None:
    assert equal_weights(
        load_file(ranks / "fsdp" / "sharded/hf/model.safetensors"), result(ranks / "fsdp" / "sharded")["weights"]
    )


def test_adapters_learn_in_shards_what_they_do_in_one_process(single: Path, ranks: Path) -> None:
    one, other = result(single / "lora"), result(ranks / "fsdp2" / "lora")
    assert equal_weights(one["initial"], other["initial"])
    agree(one, other)
    assert equal_weights(other["weights"], result(ranks / "fsdp2" / "lora-resumed")["weights"])


@pytest.mark.parametrize(("strategy", "name"), [("fsdp2", "low"), ("fsdp2", "mixed"), ("fsdp", "low")])
def test_low_precision_keeps_master_weights_and_the_algorithm_in_float32(ranks: Path, strategy: str, name: str) -> None:
    """Generation, old log-probs and update are all in bfloat16: the first update sees no ratio but 1."""
    low = result(ranks / strategy / name)
    assert low["master_dtypes"] == low["dtypes"] == {torch.float32}
    assert low["logits"] == {torch.bfloat16}
    assert low["metrics"][0]["ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert low["metrics"][0]["grad_norm"] > 0
