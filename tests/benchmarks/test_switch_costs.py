"""The benchmark of the switches: each is a key of ``fit``, and its table says which run is divided by which."""

import pytest

from app.cli.errors import check_keys, read_sources
from app.cli.runner import GRPOLambdaCLI, _top_level
from app.data.problems import Problem
from app.rewards.reward import RewardSample
from benchmarks.iteration import _parse
from benchmarks.switch_costs import COLUMNS, COMMON, SIZES, SWITCHES, _table, command, half_tied


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_is_a_key_of_fit(name: str) -> None:
    switch = SWITCHES[name]
    files = [word for strategy in switch.strategies for word in ("--config", f"configs/strategy/{strategy}.yaml")]
    GRPOLambdaCLI.wanted = "fit"
    base = ["--config", "configs/recipes/base_rl.yaml", *files, *COMMON, *switch.base]
    check_keys(read_sources([*base, *switch.options]), _top_level("fit"))
    assert switch.options or switch.micro_batch_parts > 1 or switch.strategies[0] != switch.strategies[1]


@pytest.mark.parametrize("size", SIZES)
def test_the_benchmark_of_an_iteration_takes_its_command(size: str) -> None:
    own = SIZES[size] | {"shape": size, "strategy": "single", "folder": "runs", "json": "figures.json", "iterations": 2}
    options, fit_options = _parse(command(own, COMMON))
    assert vars(options) | {"json": "figures.json"} == {
        name.replace("-", "_"): value for name, value in own.items()
    } | {"fit": COMMON}
    assert fit_options == COMMON


def test_half_of_the_groups_are_tied() -> None:
    def sample(problem: str, completion: str) -> RewardSample:
        return RewardSample(Problem("1", problem, ""), completion, 2, "stop", 9)

    even, odd = ("w10 w11", "w11 w12")
    assert half_tied([sample(even, "w1 w3"), sample(even, "w2 w4")]) == [1.0, 1.0]
    assert half_tied([sample(odd, "w1 w2"), sample(odd, "w2 w4")]) == [0.5, 1.0]


def test_the_table_holds_medians_over_rounds() -> None:
    rounds = [dict.fromkeys(COLUMNS, ratio) | {"memory": 10 * ratio} for ratio in (1.0, 5.0, 1.5)]
    assert _table("20m", {"beta": rounds}).splitlines()[-1] == "| `beta` | 1.50 | 1.50 | 1.50 | 1.50 | +15 |"
