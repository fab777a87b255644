"""One ``training_step`` is one iteration: what it learns, and what must not change it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from app.algorithm.advantages import group_advantages
from app.algorithm.objective import policy_objective
from app.engines.engine import SamplingSettings
from app.errors import ConfigurationError, DivergenceError
from app.policy.logprobs import token_log_probs
from app.policy.optimizers import OptimizerSettings
from app.policy.packed_rows import packed_tokens
from app.rollout.collection import TruncationSettings
from app.rollout.mismatch import CorrectionSettings, MismatchSettings
from app.rollout.schedule import ScheduleSettings
from app.rollout.update_plan import UpdateSettings
from callbacks import IterationCheckpoint
from tests.running import (
    equal_weights,
    fit,
    make_data,
    make_module,
    make_rollouts,
    policy_settings,
    reward,
    weights_of,
)


class Recorder(Callback):
    """Keeps each iteration's metrics and, before the update, its experience and weights."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.experiences: list[Any] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.experiences.append(pl_module.experience)
        self.weights.append(weights_of(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def run(folder: Path, objective: dict[str, Any] | None = None, data: Any = None, **changes: Any) -> Recorder:
    recorder, module = Recorder(), make_module(objective, **changes)
    fit(folder, module, data or make_data(), [make_rollouts(), recorder])
    recorder.weights.append(weights_of(module))
    return recorder


def test_lambda_0_recent_and_plain_grpo_are_bit_equal_runs(tmp_path: Path) -> None:
    settings = {"updates": UpdateSettings(2, 2)}
    plain = run(tmp_path, {"application": "none"}, **settings)
    traced = run(tmp_path, {"application": "trace", "style": "recent", "lam": 0.0}, **settings)
    other = run(tmp_path, {"application": "trace", "style": "recent", "lam": 0.9}, **settings)
    assert equal_weights(plain.weights[-1], traced.weights[-1])
    assert not equal_weights(plain.weights[-1], other.weights[-1])
    assert not equal_weights(plain.weights[0], plain.weights[-1])


def test_the_update_is_that_of_the_objective_over_the_whole_batch(tmp_path: Path) -> None:
    """Against one forward pass over everything, the functions of the algorithm, and torch's AdamW."""
    objective = {"application": "weight", "style": "both", "lam": 0.9, "beta": 0.1}
    optimizer = OptimizerSettings(lr=1e-2, max_grad_norm=0.5)
    got = run(tmp_path, objective, make_data(iterations=1), optimizer=optimizer, micro_batch_size=3)
    module, experience = make_module(objective), got.experiences[0]
    module.configure_model()
    module.policy.train()
    adam = torch.optim.AdamW(module.policy.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    log_probs = token_log_probs(module.policy, experience.tokens).log_probs
    advantages = group_advantages(experience.rewards).flatten()
    loss, _ = policy_objective(
        log_probs, log_probs.detach(), experience.ref_log_probs, advantages, experience.loss_mask, module.objective
    )
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(module.policy.parameters(), 0.5)
    adam.step()
    assert got.metrics[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    for name, tensor in weights_of(module).items():
        torch.testing.assert_close(got.weights[-1][name], tensor, rtol=1e-4, atol=2e-6)


def test_entropies_reach_the_update_whole(tmp_path: Path) -> None:
    """A bonus counts rows without an advantage, too; the share of uncertain tokens is that of the whole iteration."""
    objective = {"lam": 0.9, "entropy_bonus": 0.5, "top_entropy_share": 0.3}
    recorder, module = Recorder(), make_module(objective, micro_batch_size=3)
    fit(tmp_path, module, make_data(iterations=1), [make_rollouts(rewards=[reward("half_tied")]), recorder])
    experience = recorder.experiences[0]
    assert 0 < recorder.metrics[0]["frac_reward_zero_std"] < 1
    assert recorder.metrics[0]["policy/updates/row_share"] == 1
    module.policy.load_state_dict(recorder.weights[0])
    policy = token_log_probs(module.policy, experience.tokens, entropy_gradient=True)
    mask, entropy = experience.loss_mask, policy.entropy.detach()
    counted = entropy >= entropy[mask].quantile(0.7)
    assert 0.28 < counted[mask].float().mean() < 0.32
    advantages = group_advantages(experience.rewards).flatten()
    inputs = (policy.log_probs, policy.log_probs.detach(), None, advantages, mask, module.objective)
    loss, metrics = policy_objective(*inputs, entropy=policy.entropy, counted=counted)
    gradients = torch.autograd.grad(loss, list(module.policy.parameters()))
    assert recorder.metrics[0]["grad_norm"] == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)), rel=1e-5)
    assert recorder.metrics[0]["policy/entropy_loss"] == pytest.approx(float(metrics["entropy_loss"]), rel=1e-5)
    assert recorder.metrics[0]["policy/entropy_loss"] == pytest.approx(-0.5 * float(entropy[mask].mean()), rel=1e-5)


@pytest.mark.parametrize("reduction", ["sequence", "token", "constant"])
def test_micro_batches_change_nothing_but_memory(tmp_path: Path, reduction: str) -> None:
    objective = {"reduction": reduction, "max_tokens": 10, "lam": 0.9, "beta": 0.05}
    sgd_like = OptimizerSettings(lr=1e-3, max_grad_norm=None)
    whole = run(tmp_path, objective, make_data(iterations=1), micro_batch_size=64, optimizer=sgd_like)
    parts = run(tmp_path, objective, make_data(iterations=1), micro_batch_size=3, optimizer=sgd_like)
    assert parts.metrics[0]["grad_norm"] == pytest.approx(whole.metrics[0]["grad_norm"], rel=1e-5)
    assert parts.metrics[0]["kl"] == pytest.approx(whole.metrics[0]["kl"], abs=1e-7)


def test_micro_batches_by_tokens_change_nothing_but_memory(tmp_path: Path) -> None:
    """Here a plain gradient step, so that weights are as close as gradients."""
    whole = run(tmp_path, None, make_data(iterations=1), micro_batch_size=64)
    parts = run(tmp_path, None, make_data(iterations=1), micro_batch_tokens=60)
    micro_batches = parts.experiences[0].plan.micro_batches[0]
    assert len(micro_batches) > 1
    assert all(packed_tokens(parts.experiences[0].tokens.select(rows)) <= 60 for rows in micro_batches)
    assert parts.metrics[0]["grad_norm"] == pytest.approx(whole.metrics[0]["grad_norm"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"mismatch": MismatchSettings(correction=CorrectionSettings(upper=1.02))}, "importance_weights"),
        ({"truncation": TruncationSettings("mask"), "sampling": SamplingSettings(max_new_tokens=30)}, "loss_mask"),
    ],
)
def test_corrections_and_masks_reach_the_update(tmp_path: Path, options: dict[str, Any], changed: str) -> None:
    """The second iteration of a stale rollout against the functions of the algorithm over the whole batch."""
    recorder, module = Recorder(), make_module({"lam": 0.9}, optimizer=OptimizerSettings(lr=1e-2))
    rollouts = make_rollouts(schedule=ScheduleSettings(2), **options)
    fit(tmp_path, module, make_data(iterations=2), [rollouts, recorder])
    experience = recorder.experiences[1]
    module.policy.load_state_dict(recorder.weights[1])
    log_probs = token_log_probs(module.policy, experience.tokens).log_probs
    weights, advantages = experience.importance_weights, group_advantages(experience.rewards).flatten()

    def norm_of(mask: torch.Tensor, importance: torch.Tensor | None) -> float:
        loss, _ = policy_objective(
            log_probs, log_probs.detach(), None, advantages, mask, module.objective, importance_weights=importance
        )
        gradients = torch.autograd.grad(loss, list(module.policy.parameters()), retain_graph=True)
        return float(torch.nn.utils.get_total_norm(gradients))

    expected = norm_of(experience.loss_mask, weights)
    assert recorder.metrics[1]["grad_norm"] == pytest.approx(expected, rel=1e-5)
    other = experience.loss_mask if changed == "importance_weights" else experience.tokens.completion_mask
    assert norm_of(other, None) != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("mini_batches", [1, 2])
def test_low_precision_leaves_no_ratio_before_the_first_update(tmp_path: Path, mini_batches: int) -> None:
    """In bfloat16 log-probs depend on the rows beside: π_old is evaluated in the batches that are trained on."""
    frozen = OptimizerSettings(lr=1e-30)
    recorder, module = (
        Recorder(),
        make_module(updates=UpdateSettings(1, mini_batches), micro_batch_size=3, optimizer=frozen),
    )
    rollouts = make_rollouts(rewards=[reward("half_tied")], sampling=SamplingSettings(max_new_tokens=30))
    fit(tmp_path, module, make_data(iterations=1), [rollouts, recorder], precision="bf16-mixed")
    assert 0 < recorder.metrics[0]["frac_reward_zero_std"] < 1
    assert recorder.metrics[0]["policy/updates/row_share"] == pytest.approx(
        1 - recorder.metrics[0]["frac_reward_zero_std"]
    )
    updated = ~module.last_log_ratio.isnan().any(1)
    assert 0 < updated.sum() < len(updated)
    assert recorder.metrics[0]["policy/ratio_max"] == 1
    assert module.last_log_ratio[updated].abs().max() == 0


def test_the_first_step_is_taken_at_ratio_1_whatever_two_evaluations_differ_by(tmp_path: Path) -> None:
    class Noise(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            pl_module.experience.old_log_probs.add_(0.01)

    recorder, plain = Recorder(), run(tmp_path, None, make_data(iterations=1))
    fit(tmp_path, make_module(), make_data(iterations=1), [make_rollouts(), Noise(), recorder])
    assert recorder.metrics[0]["policy/ratio_max"] == 1
    assert recorder.metrics[0]["grad_norm"] == plain.metrics[0]["grad_norm"]


def test_a_policys_own_dropout_is_off(tmp_path: Path) -> None:
    policy = policy_settings(attention_dropout=0.5)
    plain, dropping = (
        run(tmp_path, None, make_data(iterations=2), updates=UpdateSettings(2), **more)
        for more in ({}, {"policy": policy})
    )
    assert equal_weights(plain.weights[-1], dropping.weights[-1])


def test_rows_without_a_token_in_the_loss_take_no_part(tmp_path: Path) -> None:
    sampling = SamplingSettings(max_new_tokens=2)  # which cuts every completion
    for beta in (0.0, 0.1):
        recorder, module = Recorder(), make_module({"beta": beta})
        fit(
            tmp_path,
            module,
            make_data(),
            [make_rollouts(truncation=TruncationSettings("mask"), sampling=sampling), recorder],
        )
        assert recorder.metrics[-1]["completions/clipped_ratio"] == 1
        assert recorder.metrics[-1]["policy/updates/skipped"] == 1
        assert recorder.metrics[-1]["policy/updates/row_share"] == 0
        assert equal_weights(recorder.weights[0], weights_of(module))


def test_rows_without_advantage_are_left_out_exactly(tmp_path: Path) -> None:
    """β so small that it adds nothing keeps every row in; the gradient is that of the run without them."""
    without = run(tmp_path, {"beta": 0.0}, make_data(iterations=1))
    everything = run(tmp_path, {"beta": 1e-30}, make_data(iterations=1))
    assert without.metrics[0]["grad_norm"] == pytest.approx(everything.metrics[0]["grad_norm"], rel=1e-5)


def test_a_rollout_of_tied_groups_is_counted_and_changes_no_weight(tmp_path: Path) -> None:
    recorder, module = Recorder(), make_module(updates=UpdateSettings(2))
    fit(tmp_path, module, make_data(), [make_rollouts(rewards=[reward("always_one")]), recorder])
    assert equal_weights(recorder.weights[0], weights_of(module))
    assert recorder.metrics[-1]["policy/updates/skipped"] == 1
    assert recorder.metrics[-1]["frac_reward_zero_std"] == 1
    assert recorder.metrics[-1]["reward"] == 1


class NotFinite(Callback):
    """Lets one gradient overflow in the backward passes of the iterations given."""

    def __init__(self, *iterations: int) -> None:
        self.iterations = iterations

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.iterations:
            weight = next(pl_module.policy.parameters())
            self.hook = weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), torch.inf))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.iterations:
            self.hook.remove()


def test_a_gradient_that_is_not_finite_costs_its_step_alone(tmp_path: Path) -> None:
    recorder, module = Recorder(), make_module()
    expected = (
        r"iteration 2: .* not finite \(that of model.embed_tokens.weight holds .*\); this optimiser step is left out"
    )
    with pytest.warns(UserWarning, match=expected):
        fit(tmp_path, module, make_data(), [make_rollouts(), recorder, NotFinite(1)])
    assert [metrics["policy/updates/not_finite"] for metrics in recorder.metrics] == [0, 1, 0]
    (file,) = (tmp_path / "not_finite").iterdir()
    assert file.name == "iteration-000002-update-rank0.json"
    kept = json.loads(file.read_text())
    assert len({sample["row"] for sample in kept}) == 8
    assert all(sample["source"] == "update" for sample in kept)
    assert equal_weights(recorder.weights[1], recorder.weights[2])
    after = weights_of(module)
    assert not equal_weights(recorder.weights[2], after)
    assert all(weight.isfinite().all() for weight in after.values())


def test_gradients_that_stay_not_finite_end_the_run_with_a_whole_checkpoint(tmp_path: Path) -> None:
    recorder, module = Recorder(), make_module(updates=UpdateSettings(mini_batches=2))
    checkpoint = IterationCheckpoint(every_n_iterations=50, folder=str(tmp_path))
    callbacks = [make_rollouts(), recorder, NotFinite(1, 2), checkpoint]
    with pytest.warns(UserWarning, match="left out"), pytest.raises(DivergenceError, match="3 optimiser steps"):
        fit(tmp_path, module, make_data(iterations=4), callbacks)
    saved = torch.load(tmp_path / "iteration-000002.ckpt", weights_only=False)["state_dict"]
    kept = {name.removeprefix("policy."): weight for name, weight in saved.items()}
    assert equal_weights(recorder.weights[1], {name: kept[name] for name in recorder.weights[1]})


def test_updates_are_passes_times_mini_batches(tmp_path: Path) -> None:
    steps: list[int] = []

    class Counter(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None: ...

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            steps.append(trainer.global_step)

    fit(tmp_path, make_module(updates=UpdateSettings(3, 2)), make_data(), [make_rollouts(), Counter()])
    assert steps == [6, 12, 18]


def test_the_first_update_sees_no_ratio_and_later_ones_do(tmp_path: Path) -> None:
    one = run(tmp_path, make_data(iterations=1) and None, make_data(iterations=1))
    two = run(tmp_path, None, make_data(iterations=1), updates=UpdateSettings(2))
    assert one.metrics[0]["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert two.metrics[0]["policy/ratio_max"] > 1.001


def test_the_reference_is_loaded_only_for_beta_and_stays_what_it_was(tmp_path: Path) -> None:
    module = make_module({"beta": 0.1})
    fit(tmp_path, module, make_data(), [make_rollouts()])
    start = make_module()
    start.configure_model()
    assert module.reference is not None
    assert start.reference is None
    reference = dict(module.reference.state_dict())
    assert equal_weights(reference, weights_of(start))
    assert not any("reference" in name for name, _ in module.named_parameters())


@pytest.mark.parametrize("every", [1, 2])
def test_six_iterations_equal_three_and_three(tmp_path: Path, every: int) -> None:
    """Bit for bit, through a checkpoint in the middle, in the middle of a rollout period too."""

    def callbacks(folder: str) -> list[Any]:
        checkpoint = IterationCheckpoint(every_n_iterations=3, keep=2, folder=str(tmp_path / folder))
        return [make_rollouts(schedule=ScheduleSettings(every)), Recorder(), checkpoint]

    settings = {"updates": UpdateSettings(2), "optimizer": OptimizerSettings(lr=1e-3, schedule="cosine")}
    whole, resumed = make_module(**settings), make_module(**settings)
    parts = callbacks("whole")
    fit(tmp_path, whole, make_data(iterations=6), parts)
    again = callbacks("resumed")
    trainer = fit_resumed(tmp_path, resumed, again, tmp_path / "whole" / "iteration-000003.ckpt")
    assert [e.iteration for e in again[1].experiences] == [3, 4, 5]
    assert equal_weights(weights_of(whole), weights_of(resumed))
    mine, theirs = again[1].metrics[-1], parts[1].metrics[-1]
    assert {k: v for k, v in mine.items() if "time" not in k and "second" not in k} == {
        k: v for k, v in theirs.items() if "time" not in k and "second" not in k
    }
    assert trainer.global_step == 12


def fit_resumed(folder: Path, module: Any, callbacks: list[Any], checkpoint: Path) -> Any:
    from tests.running import make_trainer

    trainer = make_trainer(folder, callbacks)
    trainer.fit(module, datamodule=make_data(iterations=6), ckpt_path=str(checkpoint), weights_only=True)
    return trainer


@pytest.mark.parametrize("key", ["per_rollout", "mini_batches"])
def test_updates_below_one_are_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.updates\.{key}: must be at least 1, got 0"):
        UpdateSettings(**{key: 0})


@pytest.mark.parametrize("key", ["micro_batch_size", "micro_batch_tokens"])
def test_micro_batches_below_one_are_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"model.{key}"):
        make_module(**{key: 0})


def test_mini_batches_that_do_not_divide_a_ranks_prompts_are_refused_before_anything_loads(tmp_path: Path) -> None:
    module = make_module(updates=UpdateSettings(mini_batches=3))
    with pytest.raises(
        ConfigurationError, match=r"model\.updates\.mini_batches: 3 does not divide the 4 prompts of a rank"
    ):
        fit(tmp_path, module, make_data(prompts=4), [make_rollouts()])
    assert not hasattr(module, "policy")
