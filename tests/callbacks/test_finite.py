"""Numbers that are not finite end a run where they arise, named, before anything is learned, scored or saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from app.engines.engine import SamplingSettings
from app.engines.transformers_engine import TransformersEngine
from app.errors import DivergenceError
from callbacks import BenchmarkEvaluation, IterationCheckpoint
from tests.running import fit, make_benchmarks, make_data, make_module, make_rollouts, make_trainer

LAYER = "model.layers.1.mlp.down_proj"


class Broken(Callback):
    """Makes a weight not finite at the end of an iteration, or a layer's output before one begins."""

    def __init__(self, iteration: int, output: float | None = None) -> None:
        self.iteration = iteration
        self.output = output

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.iteration:
            layer = pl_module.policy.get_submodule(LAYER)
            if self.output is None:
                layer.weight.data[0, 0] = float("nan")
            else:
                layer.register_forward_hook(
                    lambda module, given, made: made.index_fill(-1, torch.tensor(0), self.output)
                )


def test_a_weight_that_is_not_finite_ends_the_run_before_the_next_rollout(tmp_path: Path) -> None:
    keep = IterationCheckpoint(9, folder=str(tmp_path / "c"))
    expected = rf"^after iteration 2 the policy's weight {LAYER}\.weight holds values that are not finite: nothing can"
    with pytest.raises(DivergenceError, match=expected):
        fit(tmp_path, make_module(), make_data(iterations=4), [make_rollouts(), keep, Broken(2)])
    assert keep.last is None  # what is broken is not saved


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_overflow_in_a_layer_is_named_with_its_samples_which_are_kept(tmp_path: Path, value: float) -> None:
    keep = IterationCheckpoint(50, folder=str(tmp_path / "c"))
    with pytest.raises(DivergenceError) as caught:
        fit(tmp_path, make_module(), make_data(iterations=4), [make_rollouts(), keep, Broken(2, value)])
    message = str(caught.value)
    assert message.startswith(
        "iteration 3: the policy's log-probs are not finite in 16 of 16 completions, the first of"
    )
    assert f"though all weights are. {LAYER} is the first module whose output is not;" in message
    file = tmp_path / "not_finite" / "iteration-000003.json"
    assert message.endswith(f"The samples are kept in {file}")
    kept = json.loads(file.read_text())
    assert len(kept) == 8
    assert kept[0]["problem_id"] in message
    assert kept[0]["log_probs"]["policy"][0] == "nan"
    assert len(kept[0]["log_probs"]["engine"]) == len(kept[0]["completion_ids"])
    assert keep.last is not None  # of iteration 2, whose weights are whole
    assert keep.last.resolve().name == "iteration-000002.ckpt"


class Overflowing(TransformersEngine):
    """Whose arithmetic overflows where the trainer's does not."""

    def generate(self, requests: Any) -> Any:
        groups = super().generate(requests)
        groups[0][-1].log_probs[2] = float("-inf")
        return groups


def test_log_probs_of_the_engine_alone_are_the_engines_fault(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"the engine's log-probs are not finite in 1 of 16 .* from token 2 on,"):
        fit(tmp_path, make_module(), make_data(iterations=1), [make_rollouts(engine=Overflowing())])


def validate(folder: Path, module: Any) -> None:
    scores = BenchmarkEvaluation(SamplingSettings(temperature=0.0, max_new_tokens=6), grader_workers=1)
    data = make_data(iterations=1, benchmarks=make_benchmarks(2))
    make_trainer(folder, [scores]).validate(module, datamodule=data)


class Loaded:
    """What happened to a policy before it is evaluated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def module(self, change: Any) -> Any:
        module = make_module()
        load = module.configure_model

        def changed() -> None:
            load()
            change(module.policy)

        self.monkeypatch.setattr(module, "configure_model", changed)
        return module


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    return Loaded(monkeypatch)


def test_validate_of_a_policy_with_a_weight_that_is_not_finite_scores_nothing(
    tmp_path: Path, loaded: Loaded, capsys: pytest.CaptureFixture[str]
) -> None:
    module = loaded.module(lambda policy: policy.lm_head.weight.data[5].fill_(float("inf")))
    expected = r"^as it was loaded, the policy's weight lm_head\.weight holds .* finite: there is nothing to evaluate"
    with pytest.raises(DivergenceError, match=expected):
        validate(tmp_path, module)
    assert "accuracy" not in capsys.readouterr().out


def test_validate_of_a_policy_that_overflows_scores_nothing(
    tmp_path: Path, loaded: Loaded, capsys: pytest.CaptureFixture[str]
) -> None:
    def overflow(policy: Any) -> None:
        policy.get_submodule(LAYER).register_forward_hook(lambda module, given, made: made * float("inf"))

    with pytest.raises(DivergenceError, match=r"^the evaluation gives no scores: .* of 2 problems, the first"):
        validate(tmp_path, loaded.module(overflow))
    assert "accuracy" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("results.json"))


def test_an_evaluation_in_which_some_problem_overflows_gives_no_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = BenchmarkEvaluation(
        SamplingSettings(temperature=0.0, max_new_tokens=6), engine=Overflowing(), grader_workers=1
    )
    data = make_data(iterations=1, benchmarks=make_benchmarks(2))
    expected = (
        r"^the evaluation gives no scores: log-probs are not finite in completions of 1 problems, the first '.*' of"
    )
    with pytest.raises(DivergenceError, match=expected):
        make_trainer(tmp_path, [scores]).validate(make_module(), datamodule=data)
    assert "accuracy" not in capsys.readouterr().out
    samples = [line for file in tmp_path.rglob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(samples) == 1  # of the other problem
