"""Two ranks learn what one process does with the same global batch, under every strategy, with gloo on CPUs.

Sums run in another order on other numbers of ranks: metrics agree to 1e-4 (relative), weights to 2e-6 after 4
iterations of up to 1e-3 each. Runs on the same ranks agree bit for bit.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from app.policy.checkpoints import read_weights
from app.policy.models import PolicySettings, end_token_ids, load_policy, load_tokenizer
from tests.distributed.agreement import (
    ENTROPY,
    HALF_TIED,
    JOB,
    LORA,
    LOW,
    SAVED,
    TIED,
    UNEVEN,
    UNEVEN_ROWS,
    agree,
    computes_low_and_keeps_float32,
)
from tests.distributed.job import run
from tests.distributed.launch import launch, result, untimed
from tests.running import equal_weights, make_module, policy_settings

pytestmark = pytest.mark.slow
AUDIT = {"every_n_iterations": 2, "problems": 4, "completions": 2, "cut_points": 2, "continuations": 2}
SEVERAL_ENDS = {"eos_token_id": [1, 7], "temperature": 0.6}
"""Of the folder that one job starts from. transformers does not save it: there is no ``do_sample``."""


@pytest.fixture(scope="module")
def ranks(single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs on two ranks and of one that goes on with theirs; a folder a strategy."""
    root = tmp_path_factory.mktemp("ranks")
    shutil.copytree(single / "plain/hf", root / "start")
    (root / "start/generation_config.json").write_text(json.dumps(SEVERAL_ENDS))
    launch([*ddp_jobs(root / "ddp"), *fsdp2_jobs(root / "fsdp2", single)], 2, root)
    saved = str(root / "fsdp2/sharded" / SAVED)
    launch([{**JOB, "strategy": "fsdp2", "folder": str(root / "fsdp2/one-rank"), "resume": saved}], 1, root)
    return root


def ddp_jobs(root: Path) -> list[dict[str, Any]]:
    plain = {**JOB, "strategy": "ddp"}
    return [
        {**plain, "folder": str(root / "plain"), "save_every": 2},
        {**plain, **UNEVEN, "folder": str(root / "uneven")},
        {**plain, "folder": str(root / "resumed"), "resume": str(root / "plain" / SAVED), "audit": AUDIT},
        {**plain, **LORA, "folder": str(root / "lora")},
        {**plain, **ENTROPY, "folder": str(root / "entropy")},
    ]


def fsdp2_jobs(root: Path, single: Path) -> list[dict[str, Any]]:
    plain = {**JOB, "strategy": "fsdp2"}
    whole = {**plain, "sharded_checkpoint": False}
    offloaded = {**plain, "module": {**JOB["module"], "policy_offload": True, "reference_offload": True}}
    return [
        {**plain, "folder": str(root / "sharded"), "save_every": 2, "export": True},
        {**whole, "folder": str(root / "whole"), "save_every": 2, "export": True},
        {**plain, "folder": str(root / "sharded-resumed"), "resume": str(root / "sharded" / SAVED), "audit": AUDIT},
        {**whole, "folder": str(root / "whole-resumed"), "resume": str(root / "whole" / SAVED)},
        {**plain, "folder": str(root / "from-single"), "resume": str(single / "plain" / SAVED)},
        {**plain, **UNEVEN, "folder": str(root / "uneven")},
        {**plain, **HALF_TIED, "folder": str(root / "half-tied")},
        {**plain, "folder": str(root / "tied-embeddings"), **TIED, "save_every": 4},
        {**whole, "folder": str(root / "tied-whole"), **TIED, "save_every": 4},
        {
            **plain,
            "folder": str(root / "from-files"),
            "path": str(root.parent / "start"),
            "iterations": 1,
            "export": True,
        },
        {**plain, "folder": str(root / "from-sharded"), "path": str(root / "sharded" / SAVED), "iterations": 1},
        {**plain, **LOW, "folder": str(root / "low"), "precision": "bf16-true"},
        {**plain, **LOW, "folder": str(root / "mixed"), "precision": "bf16-mixed"},
        {**offloaded, "folder": str(root / "offloaded"), "save_every": 2, "export": True, "evaluate": True},
        {**offloaded, "folder": str(root / "offloaded-resumed"), "resume": str(root / "offloaded" / SAVED)},
        {**offloaded, **LORA, "folder": str(root / "offloaded-lora"), "sharded_checkpoint": False, "save_every": 2},
        {**plain, **LORA, "folder": str(root / "lora"), "save_every": 2, "export": True},
        {**plain, **LORA, "folder": str(root / "lora-resumed"), "resume": str(root / "lora" / SAVED)},
    ]


def test_ddp_is_one_process(single: Path, ranks: Path) -> None:
    agree(result(single / "plain"), result(ranks / "ddp" / "plain"))
    agree(result(single / "lora"), result(ranks / "ddp" / "lora"))
    assert result(ranks / "ddp" / "plain")["kept"] == result(single / "plain")["kept"]


def test_fsdp2_is_one_process_with_half_of_the_weights_on_each_rank(single: Path, ranks: Path) -> None:
    one, seen = result(single / "plain"), [result(ranks / "fsdp2" / "sharded", rank) for rank in range(2)]
    for rank in seen:
        agree(one, rank)
        assert rank["kept"] == one["kept"] // 2
    assert all(metrics["policy/updates/whole_logits"] == 0 for metrics in seen[0]["metrics"])
    assert equal_weights(seen[0]["weights"], seen[1]["weights"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_uneven_lengths_and_a_rank_whose_groups_are_all_tied(ranks: Path, strategy: str) -> None:
    """Ranks decode for different numbers of steps and evaluate different numbers of problems; none waits for ever."""
    seen = [result(ranks / strategy / "uneven", rank) for rank in range(2)]
    assert any(max(one) != max(other) for one, other in zip(*(rank["lengths"] for rank in seen), strict=True))
    assert equal_weights(seen[0]["weights"], seen[1]["weights"])
    assert not equal_weights(seen[0]["weights"], seen[0]["initial"])
    assert seen[0]["metrics"][0]["frac_reward_zero_std"] == 0.5
    assert seen[0]["metrics"][0]["policy/updates/skipped"] == 0


def test_ranks_with_unequal_numbers_of_rows_that_have_a_gradient(single: Path, ranks: Path) -> None:
    """They evaluate and train in unequal numbers of batches, and stay in step."""
    one, seen = result(single / "half-tied"), [result(ranks / "fsdp2" / "half-tied", rank) for rank in range(2)]
    agree(one, seen[0])
    assert any(0 < metrics["policy/updates/row_share"] < 1 for metrics in one["metrics"])
    assert any(a != b for a, b in zip(*(rank["trained"] for rank in seen), strict=True))


def test_the_share_of_uncertain_tokens_is_that_of_all_ranks(single: Path, ranks: Path) -> None:
    one, seen = result(single / "entropy"), [result(ranks / "ddp" / "entropy", rank) for rank in range(2)]
    for rank in seen:
        agree(one, rank)
    assert all(
        metrics["policy/entropy_loss"] < 0 and metrics["policy/updates/row_share"] == 1 for metrics in one["metrics"]
    )


def test_tied_embeddings_stay_tied_in_shards(single: Path, ranks: Path) -> None:
    one, other = result(single / "tied-embeddings"), result(ranks / "fsdp2" / "tied-embeddings")
    agree(one, other)
    assert "lm_head.weight" not in other["weights"]
    for name in ("tied-embeddings", "tied-whole"):
        saved = str(ranks / "fsdp2" / name / "checkpoints/iteration-000004.ckpt")
        policy = load_policy(PolicySettings(path=saved))
        assert policy.get_output_embeddings().weight is policy.get_input_embeddings().weight
        assert equal_weights(dict(policy.named_parameters()), other["weights"])


def test_new_weights_are_those_of_one_process(single: Path, ranks: Path) -> None:
    tied = policy_settings("qwen2", **UNEVEN_ROWS["config"])
    for settings, name in ((policy_settings(), "sharded"), (tied, "tied-embeddings")):
        drawn = dict(load_policy(settings, make_module().seed).named_parameters())
        assert equal_weights(drawn, result(ranks / "fsdp2" / name)["initial"])


def test_files_and_checkpoints_are_read_shard_by_shard(single: Path, ranks: Path) -> None:
    assert equal_weights(
        load_file(single / "plain/hf/model.safetensors"), result(ranks / "fsdp2" / "from-files")["initial"]
    )
    trained = read_weights(str(ranks / "fsdp2" / "sharded/checkpoints/iteration-000002.ckpt"))
    assert equal_weights(trained, result(ranks / "fsdp2" / "from-sharded")["initial"])


def test_all_end_tokens_of_a_folder_are_known_in_shards_and_exported(ranks: Path) -> None:
    """Others would let a completion run on past its end: other rollouts and scores than of one process."""
    start, exported = (PolicySettings(path=str(ranks / folder)) for folder in ("start", "fsdp2/from-files/hf"))
    for settings in (start, exported):
        assert end_token_ids(load_tokenizer(settings), load_policy(settings)) == (1, 7)
    assert [result(ranks / "fsdp2/from-files", rank)["end_token_ids"] for rank in range(2)] == [(1, 7)] * 2


@pytest.mark.parametrize("name", ["sharded", "whole"])
def test_fsdp2_resumes_on_two_ranks_bit_for_bit(ranks: Path, name: str) -> None:
    uninterrupted, resumed = result(ranks / "fsdp2" / name), result(ranks / "fsdp2" / f"{name}-resumed")
    assert equal_weights(uninterrupted["weights"], resumed["weights"])
    assert untimed(uninterrupted["metrics"][-1]) == untimed(resumed["metrics"][-1])


def test_ddp_resumes_on_two_ranks_bit_for_bit(ranks: Path) -> None:
    assert equal_weights(result(ranks / "ddp" / "plain")["weights"], result(ranks / "ddp" / "resumed")["weights"])


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


def test_adapters_learn_in_shards_what_they_do_in_one_process(single: Path, ranks: Path) -> None:
    one, other = result(single / "lora"), result(ranks / "fsdp2" / "lora")
    assert equal_weights(one["initial"], other["initial"])
    agree(one, other)
    assert equal_weights(other["weights"], result(ranks / "fsdp2" / "lora-resumed")["weights"])


def test_offloading_changes_nothing_bit_for_bit(ranks: Path) -> None:
    """On CPU ranks the way through host memory is the same, without its copies."""
    for plain, offloaded in (("sharded", "offloaded"), ("lora", "offloaded-lora")):
        one, other = result(ranks / "fsdp2" / plain), result(ranks / "fsdp2" / offloaded)
        assert equal_weights(one["weights"], other["weights"])
        for mine, theirs in zip(one["metrics"], other["metrics"], strict=True):
            assert untimed(mine).items() <= untimed(theirs).items()
        one, other = (read_weights(str(ranks / "fsdp2" / name / SAVED)) for name in (plain, offloaded))
        assert equal_weights(one, other)
    resumed = result(ranks / "fsdp2" / "offloaded-resumed")["weights"]
    assert equal_weights(resumed, result(ranks / "fsdp2" / "offloaded")["weights"])
    exported = load_file(ranks / "fsdp2" / "offloaded/hf/model.safetensors")
    assert equal_weights(exported, load_file(ranks / "fsdp2" / "sharded/hf/model.safetensors"))


@pytest.mark.parametrize("name", ["low", "mixed"])
def test_low_precision_keeps_master_weights_and_the_algorithm_in_float32(ranks: Path, name: str) -> None:
    computes_low_and_keeps_float32(result(ranks / "fsdp2" / name))


@pytest.mark.parametrize("name", ["ddp/resumed", "fsdp2/sharded-resumed"])
def test_a_credit_audit_on_two_ranks_has_the_problems_of_both(ranks: Path, name: str) -> None:
    """That it changes nothing is seen above: the runs that these go on with had none."""
    for iteration in (2, 4):
        found = json.loads((ranks / name / f"audit/iteration-{iteration:06d}.json").read_text())
        assert len(set(found["segments"]["problem"])) == found["problems"] == 4
