"""Parts that do not fit together, or do less than one would think."""

import warnings

import pytest

from app.cli.checks import check_parts
from app.engines.vllm.engine import VLLMEngine
from app.rollout.mismatch import CorrectionSettings, MismatchSettings
from app.rollout.schedule import ScheduleSettings
from callbacks import BenchmarkEvaluation
from tests.running import make_benchmarks, make_data, make_module, make_rollouts


def test_benchmarks_that_nothing_evaluates_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="data.benchmarks are not evaluated: give `evaluation: {}`"):
        check_parts("fit", make_module(), make_data(benchmarks=make_benchmarks()), make_rollouts(), None)


@pytest.mark.parametrize(
    ("changes", "evaluation"), [({}, BenchmarkEvaluation()), ({"overlap": "drop"}, None), ({"benchmarks": {}}, None)]
)
def test_benchmarks_that_are_evaluated_or_only_kept_out_of_training_are_not(
    changes: dict, evaluation: BenchmarkEvaluation | None
) -> None:
    data = make_data(**{"benchmarks": make_benchmarks(), **changes})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_parts("fit", make_module(), data, make_rollouts(), evaluation)


@pytest.mark.parametrize("schedule", [ScheduleSettings(4), ScheduleSettings(3, True)])
def test_samples_that_nothing_corrects_for_their_age_are_warned_of(schedule: ScheduleSettings) -> None:
    stale: dict = {"schedule": schedule}
    if schedule.generate_ahead:
        pytest.importorskip("vllm", reason="vLLM is optional: make setup-vllm")
        stale["engine"] = VLLMEngine(placement="separate")
    with pytest.warns(UserWarning, match="samples are up to 3 iterations older.*rollouts.mismatch.correction"):
        check_parts("fit", make_module(), make_data(), make_rollouts(**stale), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_parts(
            "fit",
            make_module(),
            make_data(),
            make_rollouts(**stale, mismatch=MismatchSettings(correction=CorrectionSettings())),
            None,
        )


def test_a_kl_term_without_a_pull_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="gradient of k1 is 0 on average"):
        check_parts("fit", make_module({"beta": 0.1, "kl_estimator": "k1"}), make_data(), make_rollouts(), None)
