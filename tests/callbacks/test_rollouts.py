"""Rollouts within a run: periods, truncation, dynamic sampling, faults, resuming in the middle."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Callback

from app.engines.engine import Completion, SamplingSettings
from app.engines.faults import EngineFailure
from app.engines.transformers_engine import TransformersEngine
from app.errors import ConfigurationError
from app.grading.grader import REASONS
from app.policy.optimizers import OptimizerSettings
from app.rewards.correctness import CorrectnessReward
from app.rewards.reward import RewardSample
from app.rollout.collection import TruncationSettings
from app.rollout.dynamic_sampling import DynamicSamplingSettings, replace_tied, tied_groups
from app.rollout.experience import Rollout, rollout_from_state, rollout_state
from app.rollout.mismatch import CorrectionSettings, MismatchSettings
from app.rollout.schedule import ScheduleSettings
from callbacks import IterationCheckpoint
from tests.running import (
    equal_weights,
    fake_rollout,
    fit,
    make_data,
    make_module,
    make_rollouts,
    make_trainer,
    reward,
    weights_of,
)


class Watch(Callback):
    """Keeps experiences and logged metrics of every iteration."""

    def __init__(self) -> None:
        self.experiences: list[Any] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.experiences.append(pl_module.experience)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class CountingEngine(TransformersEngine):
    """The real engine; remembers the requests of each call and fails in the calls it is told to."""

    def __init__(self, failures: Sequence[int] = ()) -> None:
        super().__init__()
        self.calls: list[list[Any]] = []
        self.generated: list[Completion] = []
        self.seconds = 0.0
        self.failures = set(failures)
        self.starts = self.closes = 0

    def start(self, module: Any) -> None:
        self.starts += 1
        super().start(module)

    def generate(self, requests: Any) -> Any:
        self.calls.append(list(requests))
        if len(self.calls) in self.failures:
            raise EngineFailure("died", "for a test")
        started = time.perf_counter()
        groups = super().generate(requests)
        self.seconds += time.perf_counter() - started
        self.generated += [completion for group in groups for completion in group]
        return groups

    def close(self) -> None:
        self.closes += 1
        super().close()


def run(folder: Path, iterations: int = 4, **changes: Any) -> Watch:
    watch = Watch()
    fit(folder, make_module(), make_data(iterations=iterations), [make_rollouts(**changes), watch])
    return watch


def test_a_period_generates_the_prompts_of_several_iterations_at_once(tmp_path: Path) -> None:
    engine = CountingEngine()
    watch = run(tmp_path, iterations=5, engine=engine, schedule=ScheduleSettings(2))
    assert [len(call) for call in engine.calls] == [8, 8, 4]
    assert [metrics["rollouts/staleness"] for metrics in watch.metrics] == [0, 1, 0, 1, 0]
    every = run(tmp_path, iterations=5)
    for one, other in zip(watch.experiences, every.experiences, strict=True):
        assert one.rollout.batch == other.rollout.batch
    assert watch.experiences[0].rollout.completions == every.experiences[0].rollout.completions
    assert watch.experiences[1].rollout.completions != every.experiences[1].rollout.completions


def test_old_log_probs_are_the_trainers_at_the_start_of_each_iteration(tmp_path: Path) -> None:
    """With a period the sampler's weights are older than π_old: the difference shows it, and only there."""
    watch = run(tmp_path, iterations=4, schedule=ScheduleSettings(2))
    gaps = [metrics["sampling/sampling_logp_difference/max"] for metrics in watch.metrics]
    assert gaps[0] < 1e-4
    assert gaps[2] < 1e-4
    assert gaps[1] > 1e-3
    assert gaps[3] > 1e-3
    assert all(metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-4) for metrics in watch.metrics)


LONGER = SamplingSettings(max_new_tokens=30)
"""Cuts some completions of the tiny policy off, and not others."""


def truncated_rows(experience: Any) -> torch.Tensor:
    return torch.tensor([row.finish_reason == "length" for row in experience.rollout.rows])


@pytest.mark.parametrize("truncated", ["keep", "mask", "penalise"])
def test_truncated_completions(tmp_path: Path, truncated: str) -> None:
    watch = run(tmp_path, iterations=1, truncation=TruncationSettings(truncated, 0.5), sampling=LONGER)
    experience, metrics = watch.experiences[0], watch.metrics[0]
    cut = truncated_rows(experience)
    assert 0 < cut.float().mean() < 1
    assert metrics["completions/clipped_ratio"] == pytest.approx(float(cut.float().mean()))
    kept = experience.loss_mask.any(1)
    assert torch.equal(kept, ~cut if truncated == "mask" else torch.ones_like(cut))
    raw = torch.tensor(experience.rollout.reward_columns["digit_share"])
    paid = 0.5 * cut.float() if truncated == "penalise" else torch.zeros(len(cut))
    torch.testing.assert_close(experience.rewards.flatten(), raw - paid)
    assert experience.rollout.rewards == experience.rewards.flatten().tolist()
    assert metrics["reward"] == pytest.approx(float((raw - paid).mean()))
    assert metrics["rewards/digit_share/mean"] == pytest.approx(float(raw.mean()))


def test_what_the_penalty_tells_apart_is_tied_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without it every group is tied: the metrics, the warning and the update speak of the same rewards."""
    watch = run(
        tmp_path,
        iterations=1,
        truncation=TruncationSettings("penalise"),
        sampling=LONGER,
        rewards=[reward("always_one")],
    )
    metrics, cut = watch.metrics[0], truncated_rows(watch.experiences[0]).view(4, 4).double()
    tied = [group.sum() in (0, 4) for group in cut]
    assert 0 < sum(tied) < 4
    assert metrics["frac_reward_zero_std"] == sum(tied) / 4
    assert metrics["reward"] == pytest.approx(1 - float(cut.mean()))
    assert metrics["reward_std"] == pytest.approx(float(cut.std(1).mean()))
    assert metrics["rewards/always_one/mean"] == 1
    assert metrics["policy/updates/skipped"] == 0
    assert "nothing to learn from" not in caplog.text


def test_dynamic_sampling_keeps_what_the_penalty_tells_apart(tmp_path: Path) -> None:
    """The first round's such groups stay; the further rounds' completions pay as well."""
    settings: dict[str, Any] = {
        "truncation": TruncationSettings("penalise"),
        "sampling": LONGER,
        "rewards": [reward("always_one")],
    }
    plain = run(tmp_path, iterations=1, **settings).experiences[0]
    watch = run(tmp_path, iterations=1, dynamic_sampling=DynamicSamplingSettings(1), **settings)
    experience = watch.experiences[0]
    informative = [index for index, cut in enumerate(truncated_rows(plain).view(4, 4)) if cut.any() and not cut.all()]
    assert 0 < len(informative) < 4
    assert watch.metrics[0]["rollouts/dynamic_sampling/tied_before"] == 1 - len(informative) / 4
    assert watch.metrics[0]["rollouts/dynamic_sampling/replaced"] > 0
    for index in informative:
        assert experience.rollout.completions[index] == plain.rollout.completions[index]
    torch.testing.assert_close(experience.rewards.flatten(), 1 - truncated_rows(experience).float())


def test_a_rollout_that_waits_in_a_checkpoint_pays_the_penalty_once(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "truncation": TruncationSettings("penalise"),
        "sampling": LONGER,
        "schedule": ScheduleSettings(2),
    }
    keep = IterationCheckpoint(every_n_iterations=1, keep=9, folder=str(tmp_path / "c"))
    whole, resumed = Watch(), Watch()
    fit(tmp_path, make_module(), make_data(iterations=2), [make_rollouts(**settings), keep, whole])
    trainer = make_trainer(tmp_path, [make_rollouts(**settings), resumed])
    trainer.fit(
        make_module(), datamodule=make_data(iterations=2), ckpt_path=str(tmp_path / "c" / "iteration-000001.ckpt")
    )
    raw = torch.tensor(whole.experiences[1].rollout.reward_columns["digit_share"])
    expected = (raw - truncated_rows(whole.experiences[1]).float()).view(4, 4)
    torch.testing.assert_close(whole.experiences[1].rewards, expected)
    torch.testing.assert_close(resumed.experiences[0].rewards, expected)


def rounded_apart(samples: Sequence[RewardSample]) -> list[float | None]:
    """0.3 in two ways, which are two numbers in float64 and one in float32."""
    return [0.1 + 0.2 if index % 2 else 0.3 for index, _ in enumerate(samples)]


def test_rewards_that_differ_by_rounding_are_tied_for_metrics_as_for_the_update(tmp_path: Path) -> None:
    watch = run(tmp_path, iterations=1, rewards=[replace_reward("rounded_apart")])
    assert watch.metrics[0]["policy/updates/skipped"] == 1
    assert watch.metrics[0]["frac_reward_zero_std"] == 1
    assert tied_groups(watch.experiences[0].rollout) == [0, 1, 2, 3]


def test_metrics_speak_of_the_rollout(tmp_path: Path) -> None:
    watch = run(tmp_path, iterations=2)
    rollout, metrics = watch.experiences[1].rollout, watch.metrics[1]
    lengths = [len(row.token_ids) for row in rollout.rows]
    rewards = torch.tensor(rollout.rewards).view(-1, 4)
    assert metrics["reward"] == pytest.approx(float(rewards.mean()), abs=1e-6)
    assert metrics["reward_std"] == pytest.approx(float(rewards.std(1).mean()), abs=1e-6)
    assert metrics["rewards/digit_share/mean"] == pytest.approx(metrics["reward"])
    assert metrics["completions/mean_length"] == pytest.approx(sum(lengths) / len(lengths))
    assert metrics["completions/min_length"] == min(lengths)
    assert metrics["completions/max_length"] == max(lengths)
    total = sum(len(row.token_ids) for e in watch.experiences for row in e.rollout.rows)
    assert metrics["speed/tokens/total"] == total
    assert metrics["completions/total"] == 32


def test_every_reason_of_a_verdict_has_a_curve_without_gaps(tmp_path: Path) -> None:
    watch = run(tmp_path, iterations=2, rewards=[CorrectnessReward(workers=1)])
    for metrics in watch.metrics:
        shares = [metrics[f"rollouts/verdicts/{reason}"] for reason in REASONS]
        assert sum(shares) == pytest.approx(1)
        assert metrics["rollouts/verdicts/timeout"] == 0


def test_an_engine_that_fails_once_is_restarted_and_the_run_is_the_same(tmp_path: Path) -> None:
    engine, modules = CountingEngine(failures=[2]), [make_module(), make_module()]
    watch = Watch()
    fit(tmp_path, modules[0], make_data(), [make_rollouts(engine=engine), watch])
    fit(tmp_path, modules[1], make_data(), [make_rollouts()])
    assert equal_weights(weights_of(modules[0]), weights_of(modules[1]))
    assert watch.metrics[-1]["rollouts/engine/restarts"] == 1
    assert engine.starts == 2


def test_an_engine_that_fails_twice_stops_the_run_with_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    engine = CountingEngine(failures=[3, 4])
    keep = IterationCheckpoint(every_n_iterations=50, folder=str(tmp_path / "c"))
    with pytest.raises(EngineFailure, match="again after a restart"):
        fit(tmp_path, make_module(), make_data(iterations=4), [make_rollouts(engine=engine), keep])
    assert engine.closes >= 2
    assert (tmp_path / "c" / "last.ckpt").resolve().name == "iteration-000002.ckpt"
    whole, resumed = make_module(), make_module()
    fit(tmp_path, whole, make_data(iterations=4), [make_rollouts()])
    fit(tmp_path, resumed, make_data(iterations=4), [make_rollouts()], tmp_path / "c" / "last.ckpt")
    assert equal_weights(weights_of(whole), weights_of(resumed))


def test_a_run_that_resumes_within_a_period_does_not_take_age_for_a_mismatch(tmp_path: Path) -> None:
    """The preflight waits for a rollout from the current weights."""
    settings = {"schedule": ScheduleSettings(4), "mismatch": MismatchSettings(0.02)}
    fast = OptimizerSettings(lr=0.1)
    keep = IterationCheckpoint(every_n_iterations=2, keep=9, folder=str(tmp_path / "c"))
    whole, resumed = make_module(optimizer=fast), make_module(optimizer=fast)
    fit(tmp_path, whole, make_data(iterations=6), [make_rollouts(**settings), keep])
    rollouts, watch = make_rollouts(**settings), Watch()
    saved = tmp_path / "c" / "iteration-000002.ckpt"
    fit(tmp_path, resumed, make_data(iterations=6), [rollouts, watch], saved)
    assert watch.metrics[0]["sampling/sampling_logp_difference/mean"] > 0.02
    assert rollouts._preflight_done
    assert equal_weights(weights_of(whole), weights_of(resumed))


def test_a_correction_reaches_the_loss_as_importance_weights(tmp_path: Path) -> None:
    """On a stale rollout the weights are the clipped ratios of trainer and sampler."""
    watch = run(
        tmp_path,
        iterations=2,
        schedule=ScheduleSettings(2),
        mismatch=MismatchSettings(correction=CorrectionSettings(upper=1.5)),
    )
    experience = watch.experiences[1]
    ratio = (experience.old_log_probs - experience.sampler_log_probs).exp().clamp(max=1.5)
    expected = ratio * experience.loss_mask
    trained = torch.cat(experience.plan.micro_batches[0])
    torch.testing.assert_close(experience.importance_weights[trained], expected[trained])
    assert experience.importance_weights.std() > 0


# ── dynamic sampling ──


def half_tied(samples: Sequence[RewardSample]) -> list[float | None]:
    """Ties the groups of problems with an even answer; others have rewards by length."""
    return [1.0 if int(s.problem.answer) % 2 == 0 else s.n_tokens + len(s.completion) / 100 for s in samples]


def test_tied_groups_give_way_to_further_prompts(tmp_path: Path) -> None:
    function = [replace_reward("half_tied")]
    plain = run(tmp_path, iterations=2, rewards=function)
    dynamic = run(tmp_path, iterations=2, rewards=function, dynamic_sampling=DynamicSamplingSettings(3))
    before, after = plain.experiences[0].rollout, dynamic.experiences[0].rollout
    assert tied_groups(before)
    assert len(tied_groups(after)) < len(tied_groups(before))
    for index in set(range(4)) - set(tied_groups(before)):
        assert after.completions[index] == before.completions[index]
    assert dynamic.metrics[0]["rollouts/dynamic_sampling/replaced"] > 0
    assert dynamic.metrics[0]["rollouts/dynamic_sampling/tied_before"] == len(tied_groups(before)) / 4


def test_what_further_rounds_cost_is_counted(tmp_path: Path) -> None:
    """The engine's own account of one iteration, beside what is logged."""
    engine = CountingEngine()
    settings = {"rewards": [replace_reward("half_tied")], "dynamic_sampling": DynamicSamplingSettings(3)}
    watch = run(tmp_path, iterations=1, engine=engine, **settings)
    metrics, learned = watch.metrics[0], watch.experiences[0].rollout.rows
    assert len(engine.calls) == 1 + metrics["rollouts/dynamic_sampling/extra_rollouts"] > 1
    assert metrics["completions/total"] == len(engine.generated) > len(learned)
    tokens = sum(len(completion.token_ids) for completion in engine.generated)
    assert metrics["speed/tokens/total"] == tokens > sum(len(row.token_ids) for row in learned)
    assert metrics["speed/tokens/per_second"] == pytest.approx(tokens / metrics["speed/time/iteration"], rel=1e-5)
    assert metrics["speed/time/generate"] >= engine.seconds * (1 - 1e-6)
    phases = [metrics[f"speed/time/{name}"] for name in ("sync", "generate", "grade", "log_probs", "train", "other")]
    assert 0 <= min(phases) <= sum(phases) <= metrics["speed/time/iteration"] * (1 + 1e-5)


def test_seconds_and_verdicts_of_all_rounds_add_up() -> None:
    def graded(rewards: list[list[float]], mark: str, verdicts: dict[str, int]) -> Rollout:
        seconds = {"generate": 1.0, "grade": 0.25}
        counts = {"rollouts/grader/restarts": float(mark == "e2")}
        return replace(fake_rollout(rewards, mark), seconds=seconds, verdicts=verdicts, counts=counts)

    extras = {1: ([[1.0, 1.0]], {"match": 2, "timeout": 0}), 2: ([[0.0, 1.0]], {"match": 1, "timeout": 1})}
    first = graded([[0.0, 0.0]], "f", {"match": 0, "mismatch": 2, "timeout": 0})
    result = replace_tied(
        first, lambda n: graded(extras[n][0], f"e{n}", extras[n][1]), DynamicSamplingSettings(5), bool
    )
    assert result.texts == ["e20.0", "e20.1"]
    assert result.seconds == {"generate": 3.0, "grade": 0.75}
    assert result.verdicts == {"match": 3, "mismatch": 2, "timeout": 1}
    assert (result.generated_tokens, result.generated_completions) == (12, 6)
    assert result.counts["rollouts/grader/restarts"] == 1


def replace_reward(name: str) -> Any:
    from app.rewards.imported import ImportedReward

    return ImportedReward(path=f"{__name__}:{name}")


groups_of_rewards = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=2, max_size=2), min_size=3, max_size=3
)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(first=groups_of_rewards, extras=st.lists(groups_of_rewards, min_size=2, max_size=2))
def test_replacing_keeps_good_groups_in_place_and_every_column_in_step(first: Any, extras: Any) -> None:
    made: list[int] = []

    def generate(number: int) -> Rollout:
        made.append(number)
        return fake_rollout(extras[number - 1], f"e{number}-")

    rollout = fake_rollout(first, "f")
    result = replace_tied(rollout, generate, DynamicSamplingSettings(2), bool)
    tied, useful = len(tied_groups(rollout)), sum(3 - len(tied_groups(generate(n))) for n in range(1, 3))
    assert len(tied_groups(result)) == max(0, tied - useful)
    for index, problem in enumerate(result.batch.problems):
        assert [text.split(".")[0] for text in result.texts[2 * index : 2 * index + 2]] == [problem.id] * 2
        if index not in tied_groups(rollout):
            assert problem.id == f"f{index}"
    assert repr(result.reward_columns["r"]) == repr(result.rewards)
    assert not tied or made[0] == 1


def test_a_rollout_survives_the_way_through_a_checkpoint() -> None:
    rollout = replace(fake_rollout([[0.0, 1.0]], "a"), counts={"x": 1.0}, verdicts={"match": 2})
    assert rollout_from_state(rollout_state(rollout)) == rollout


def test_a_rollout_that_another_version_wrote_is_refused_in_one_line() -> None:
    state = rollout_state(fake_rollout([[0.0, 1.0]], "a"))
    del state["verdicts"]
    with pytest.raises(ConfigurationError, match="ckpt_path: the checkpoint holds waiting rollouts as another version"):
        rollout_from_state(state)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"group_size": 1}, "group_size"),
        ({"sampling": SamplingSettings(temperature=0)}, "sampling.temperature"),
        ({"schedule": ScheduleSettings(generate_ahead=True)}, "rollouts.schedule.generate_ahead"),
        ({"rewards": [reward(), reward()]}, "rewards"),
        ({"reward_weights": [1.0, 2.0]}, "reward_weights"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError, match=key):
        make_rollouts(**changes)
