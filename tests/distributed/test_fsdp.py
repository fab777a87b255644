"""FullyShardedDataParallel (strategy ``fsdp``) on two CPU ranks is one process, with full weights and with adapters."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from app.policy.checkpoints import read_weights
from app.policy.lora import is_adapter
from app.policy.models import PolicySettings, load_policy
from tests.distributed.agreement import JOB, LORA, LOW, SAVED, TIED, UNEVEN, agree, computes_low_and_keeps_float32
from tests.distributed.job import run
from tests.distributed.launch import launch, result
from tests.running import equal_weights

pytestmark = pytest.mark.slow
VARIANTS: dict[str, dict[str, Any]] = {
    "sharded": {},
    "whole": {**TIED, "sharded_checkpoint": False},
    "lora": LORA,
    "lora-whole": {**LORA, "sharded_checkpoint": False},
}
"""Each is trained, saved and resumed: full weights and adapters, as folders of shards and as one file."""
OTHER_WAYS: dict[str, dict[str, Any]] = {
    "SHARD_GRAD_OP": {"sharding_strategy": "SHARD_GRAD_OP"},
    "NO_SHARD": {"sharding_strategy": "NO_SHARD"},
    "cpu_offload": {"cpu_offload": True},
}
SINGLE = {"sharded": "plain", "whole": "tied-embeddings", "lora": "lora", "lora-whole": "lora"}
"""The same training on one process."""


@pytest.fixture(scope="module")
def ranks(single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs on two ranks."""
    root = tmp_path_factory.mktemp("fsdp")
    plain = {**JOB, "strategy": "fsdp"}
    jobs = []
    for name, changes in VARIANTS.items():
        jobs.append({**plain, **changes, "folder": str(root / name), "save_every": 2, "export": True})
        saved = str(root / name / SAVED)
        jobs.append({**plain, **changes, "folder": str(root / f"{name}-resumed"), "resume": saved})
    jobs += [{**plain, "folder": str(root / way), "strategy_options": options} for way, options in OTHER_WAYS.items()]
    jobs += [
        {**plain, "folder": str(root / "from-single"), "resume": str(single / "plain" / SAVED)},
        {**plain, "folder": str(root / "from-sharded"), "path": str(root / "sharded" / SAVED), "iterations": 1},
        {**plain, "folder": str(root / "from-adapters"), "path": str(root / "lora" / SAVED), "iterations": 1},
        {**plain, **UNEVEN, "folder": str(root / "uneven")},
        {**plain, **LOW, "folder": str(root / "low"), "precision": "bf16-true"},
    ]
    launch(jobs, 2, root)
    return root


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_are_one_process_with_half_of_the_weights_on_each(single: Path, ranks: Path, name: str) -> None:
    one, seen = result(single / SINGLE[name]), [result(ranks / name, rank) for rank in range(2)]
    assert equal_weights(one["initial"], seen[0]["initial"])
    assert all(metrics["policy/updates/whole_logits"] == 0 for metrics in seen[0]["metrics"])
    for rank in seen:
        agree(one, rank)
        assert rank["kept"] == pytest.approx(one["kept"] / 2, rel=0.01)
    assert equal_weights(seen[0]["weights"], seen[1]["weights"])


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_to_shard_learn_the_same(single: Path, ranks: Path, way: str) -> None:
    agree(result(single / "plain"), result(ranks / way))


@pytest.mark.parametrize("name", VARIANTS)
def test_it_resumes_on_two_ranks_bit_for_bit(ranks: Path, name: str) -> None:
    assert equal_weights(result(ranks / name)["weights"], result(ranks / f"{name}-resumed")["weights"])


@pytest.mark.parametrize("name", ["sharded", "whole"])
def test_the_export_is_the_checkpoint_bit_for_bit(ranks: Path, name: str) -> None:
    exported = load_file(ranks / name / "hf/model.safetensors")
    saved = read_weights(str(ranks / name / "checkpoints/iteration-000004.ckpt"))
    assert exported.keys() <= saved.keys()
    assert equal_weights(exported, {key: saved[key] for key in exported})
    assert equal_weights(exported, result(ranks / name)["weights"])


@pytest.mark.parametrize("name", VARIANTS)
def test_checkpoints_are_policies(ranks: Path, name: str) -> None:
    policy = load_policy(PolicySettings(path=str(ranks / name / "checkpoints/iteration-000004.ckpt")))
    assert equal_weights(dict(policy.named_parameters()), result(ranks / name)["weights"])


@pytest.mark.parametrize("name", ["lora", "lora-whole"])
def test_checkpoints_of_adapters_hold_all_of_them_and_nothing_else(ranks: Path, name: str) -> None:
    trained = {key: value for key, value in result(ranks / name)["weights"].items() if is_adapter(key)}
    assert equal_weights(trained, read_weights(str(ranks / name / "checkpoints/iteration-000004.ckpt")))


@pytest.mark.parametrize("name", ["whole", "lora-whole"])
def test_a_full_checkpoint_resumes_on_one_process(single: Path, ranks: Path, tmp_path: Path, name: str) -> None:
    saved = str(ranks / name / SAVED)
    run({**JOB, **VARIANTS[name], "strategy": "single", "ranks": 1, "folder": str(tmp_path), "resume": saved})
    agree(result(single / SINGLE[name]), result(tmp_path), first=2)


def test_a_checkpoint_of_one_process_resumes_on_two_ranks(single: Path, ranks: Path) -> None:
    agree(result(single / "plain"), result(ranks / "from-single"), first=2)


@pytest.mark.parametrize(("name", "origin"), [("from-sharded", "sharded"), ("from-adapters", "lora")])
def test_a_checkpoint_of_shards_is_a_policy_to_start_from(ranks: Path, name: str, origin: str) -> None:
    saved, started = read_weights(str(ranks / origin / SAVED)), result(ranks / name)["initial"]
    assert saved
    assert equal_weights(saved, {key: started[key] for key in saved})


def test_uneven_lengths_and_a_rank_whose_groups_are_all_tied(ranks: Path) -> None:
    seen = [result(ranks / "uneven", rank) for rank in range(2)]
    assert any(max(one) != max(other) for one, other in zip(*(rank["lengths"] for rank in seen), strict=True))
    assert equal_weights(seen[0]["weights"], seen[1]["weights"])
    assert not equal_weights(seen[0]["weights"], seen[0]["initial"])
    assert seen[0]["metrics"][0]["frac_reward_zero_std"] == 0.5


def test_low_precision_keeps_master_weights_and_the_algorithm_in_float32(ranks: Path) -> None:
    computes_low_and_keeps_float32(result(ranks / "low"))
