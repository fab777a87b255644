"""Parts that do not fit together, or do less than one would think."""

import warnings

import pytest

from app.cli_checks import check_parts
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
