"""A run that collapses says so in words, once, and stops where it is told to."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from app.algorithm.objective import ObjectiveSettings
from app.engines.engine import SamplingSettings
from app.errors import ConfigurationError, DivergenceError
from app.policy.optimizers import OptimizerSettings
from app.rewards.reward import RewardSample, Scores
from app.rollout.collapse import WORTH_A_WARNING, CollapseLimits, CollapseWatch
from callbacks import CollapseAlarms, IterationCheckpoint
from tests.running import digit_share, fit, make_data, make_module, make_rollouts

HEALTHY = {
    "entropy": 0.3,
    "completions/clipped_ratio": 0.2,
    "kl": 0.1,
    "policy/approx_kl_old": 0.01,
    "reward_std": 0.3,
    "frac_reward_zero_std": 0.4,
    "clip_ratio/region_mean": 0.1,
    "grad_norm": 1.0,
    "sampling/sampling_logp_difference/mean": 1e-6,
}


def said(*iterations: dict[str, float], patience: int = 1) -> list[str]:
    watch = CollapseWatch(WORTH_A_WARNING, patience)
    return [words for metrics in iterations for words in watch.spoken(HEALTHY | metrics)]


@pytest.mark.parametrize(
    ("metrics", "start", "look"),
    [
        ({"entropy": 0.0}, "the policy's entropy is 0 nats", "rollouts.sampling.temperature"),
        ({"completions/clipped_ratio": 1.0}, "100% of the completions are cut off", "the table of completions"),
        ({"kl": 12.7}, "the policy is 12.7 nats a token away from the reference", "model.objective.beta"),
        ({"policy/approx_kl_old": 4e5}, "one iteration has moved the policy by 4e+05 nats", "policy/ratio_max"),
        ({"frac_reward_zero_std": 1.0}, "100% of the groups are tied", "rollouts.dynamic_sampling"),
        ({"clip_ratio/region_mean": 0.51}, "the clip takes away the gradient of 51% of the tokens", "by quarter"),
        ({"reward_std": 3e-13}, "the rewards within a group differ by 5e-13", "rollouts.reward_weights"),
    ],
)
def test_each_sign_is_said_alone_with_what_to_look_at(metrics: dict[str, float], start: str, look: str) -> None:
    (words,) = said(metrics, metrics, metrics)
    assert words.startswith(start)
    assert look in words


def test_nothing_is_said_of_a_run_that_learns() -> None:
    assert said({}, {}, patience=1) == []
    noisy = [{"grad_norm": norm} for norm in (1, 3, 0.5, 15) * 9]
    assert said(*noisy) == []
    few_untied = {"reward_std": 0.3 / 1000, "frac_reward_zero_std": 0.999}  # one group in a thousand, with spread 0.3
    assert said(few_untied) == []
    (words,) = said({"frac_reward_zero_std": 1.0, "reward_std": 0.0})  # a spread of nothing is no small spread
    assert words.startswith("100% of the groups are tied")


def test_a_sign_must_last_and_a_metric_that_lacks_says_nothing() -> None:
    low = {"entropy": 0.0}
    assert said(low, low, {}, low, low, patience=3) == []
    watch = CollapseWatch(CollapseLimits(max_kl=1.0), patience=2)
    rows = [{"kl": 2.0}, {}, {"kl": 2.0}]
    assert [len(list(watch.spoken(row))) for row in rows] == [0, 0, 1]


def test_jumps_and_growth_are_told_by_what_the_run_was_used_to() -> None:
    usual, jump = {"grad_norm": 2.0}, {"grad_norm": 50.0}
    assert said(*[usual] * 9, jump) == []  # too early to know what is usual
    (words,) = said(*[usual] * 10, jump, jump, patience=2)
    assert words.startswith("the gradient's norm is 25 times its usual size")
    name = "sampling/sampling_logp_difference/mean"
    assert said(*[{name: 1e-6}] * 12, {name: 0.019}) == []  # rounding that has grown to rounding
    (words,) = said(*[{name: 0.01}] * 12, {name: 0.03}, {name: 0.05})
    assert words.startswith("the engine's log-probabilities differ from the trainer's 5 times as much as at first")


def tiny_rewards(samples: Sequence[RewardSample]) -> Scores:
    return [1e-12 * share for share in digit_share(samples) if share is not None]


class Tiny:
    name = "tiny"

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        return tiny_rewards(samples)


def test_a_real_run_warns_once_of_what_it_shows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rollouts = make_rollouts(rewards=[Tiny()], sampling=SamplingSettings(max_new_tokens=2))
    with caplog.at_level(logging.WARNING, "callbacks"):
        fit(tmp_path, make_module(), make_data(iterations=4), [rollouts, CollapseAlarms(patience=2)])
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("iteration 2: 100% of the completions are cut off by rollouts.sampling.max_new_tokens")
    assert first.endswith("(max_clipped_ratio 0.95 for 2 iterations)")
    assert second.startswith("iteration 2: the rewards within a group differ by")


def test_a_limit_stops_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    module = make_module(
        objective=vars(ObjectiveSettings(beta=0.01)), optimizer=OptimizerSettings(lr=0.5, warmup_iterations=0)
    )
    keep = IterationCheckpoint(50, folder=str(tmp_path / "c"))
    alarms = CollapseAlarms(warn=CollapseLimits(), stop=CollapseLimits(max_kl=0.5), patience=1)
    expected = r"^stopped after iteration \d by alarms\.stop: the policy is .* from the reference.*\(max_kl 0\.5\)$"
    with pytest.raises(DivergenceError, match=expected) as caught:
        fit(tmp_path, module, make_data(iterations=6), [make_rollouts(), alarms, keep])
    done = int(str(caught.value).split()[3])
    assert keep.last is not None
    assert keep.last.resolve().name == f"iteration-{done:06d}.ckpt"


def test_limits_are_checked_and_come_from_a_configuration() -> None:
    with pytest.raises(ConfigurationError, match=r"max_kl: must be null or at least 0, got -1"):
        CollapseLimits(max_kl=-1)
    with pytest.raises(ConfigurationError, match=r"alarms\.patience: must be at least 1, got 0"):
        CollapseAlarms(patience=0)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--alarms", type=CollapseAlarms | None)
    given = {"class_path": "callbacks.CollapseAlarms", "init_args": {"stop": {"max_kl": 2}, "warn": {"max_kl": None}}}
    alarms = parser.instantiate_classes(parser.parse_object({"alarms": given})).alarms
    assert alarms.stop.limits == CollapseLimits(max_kl=2)
    assert alarms.warn.limits == replace(WORTH_A_WARNING, max_kl=None)
