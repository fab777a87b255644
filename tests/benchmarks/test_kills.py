"""A run that is killed a few times, at moments that a seed draws, ends as one that was left alone.

``python -m benchmarks.kills`` does so at every moment and for every kind of run.
"""

import random
from pathlib import Path

import pytest

from benchmarks.killing import MOMENTS, KilledRun, differences

pytestmark = pytest.mark.slow
SEED = 6
WRITING = ("checkpoint", "before the checkpoint takes its place", "before the link", "export")
ENGINE = {"class_path": "TransformersEngine"}


def test_a_run_that_is_killed_a_few_times_ends_as_if_undisturbed(tmp_path: Path) -> None:
    numbers = random.Random(SEED)
    moments = [numbers.choice(WRITING), numbers.choice([each for each in MOMENTS if each not in WRITING])]
    whole, killed = (KilledRun(tmp_path / name, ENGINE, iterations=4) for name in ("whole", "killed"))
    whole.finish()
    for moment in moments:
        found = killed.kill(moment)
        assert found.fell, f"the kill at {moment!r} did not fall there"
        assert found.intact
        assert found.left_s < 10
    said = killed.finish()
    assert "--ckpt_path last: " in said
    assert differences(whole.outcome(), killed.outcome()) == []
    assert whole.outcome()["rewards"].keys() == set(range(4))
    assert killed.unfinished() == []
