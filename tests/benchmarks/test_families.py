"""The families that users bring most, as the sweep checks them; and what the sweep makes of what it finds."""

import json
import os
import sys
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from benchmarks import families
from benchmarks.families import Failed, Family
from benchmarks.family_configs import COMMON
from benchmarks.family_table import table


@pytest.mark.parametrize("kind", COMMON)
def test_the_families_that_users_bring_most_are_trained_and_sampled_as_they_are(kind: str, tmp_path: Path) -> None:
    family = Family(kind, tmp_path)
    family.build()
    family.log_probs()
    family.engine()


def refuse() -> None:
    raise ConfigurationError("is not offered", key="model.policy")


def fail() -> None:
    raise Failed("a row differs from itself alone by 3 nats")


def stop() -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("check", "cell"),
    [
        (lambda: None, "ok"),
        (refuse, "model.policy: is not offered"),
        (fail, "X: a row differs from itself alone by 3 nats"),
        (lambda: {}["lm_head"], "X: KeyError: 'lm_head'"),
        (stop, "X: the process died"),
    ],
)
def test_a_cell_is_ok_a_refusal_or_an_x(check, cell: str, tmp_path: Path) -> None:
    assert families._forked(check, tmp_path / "cell.txt") == cell


def test_a_model_that_is_wrong_fails_its_check(tmp_path: Path) -> None:
    """The sweep's own eyes: bart is right only under padding at the ends of rows, and only where it is padded so."""
    family = Family("bart", tmp_path)
    family.build()
    family.log_probs()
    policy = family.policy()
    policy.pads_on_right = False
    family.policy = lambda: policy  # type: ignore[method-assign]
    with pytest.raises(Failed, match="a row differs from itself alone by"):
        family.log_probs()


def test_the_page_shows_every_line_once_and_hides_no_x() -> None:
    results = {
        "llama": {"log-probs": "ok", "engine": "ok"},
        "bert": {"log-probs": "is not | offered", "engine": "is not | offered"},
        "new": {"log-probs": "X: KeyError", "engine": "ok"},
        "large": {"built": "not built small: ValueError"},
    }
    rows = table(results, ["log-probs", "engine", "lora"], "COMMAND").split("| family |")[1].splitlines()
    assert rows[2:6] == [
        "| llama | ok | ok | – |",
        "| bert | refused [1] | refused [1] | – |",
        "| new | X [2] | ok | – |",
        "| large | refused [3] | refused [3] | refused [3] |",
    ]
    assert rows[7:] == ["1. is not / offered", "2. X: KeyError", "3. not built small: ValueError"]


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama.json").write_text(json.dumps({"log-probs": "ok"}))
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        asked.append(command)
        (tmp_path / "llama.part").write_text(json.dumps({"engine": "ok"}))

    monkeypatch.setattr(families.subprocess, "run", run)
    arguments = ["families", "--results", str(tmp_path), "--only", "llama", "--columns", "log-probs", "engine"]
    monkeypatch.setattr(sys, "argv", arguments)
    families.main()
    assert [command[-2:] for command in asked] == [["--columns", "engine"]]
    assert json.loads((tmp_path / "llama.json").read_text()) == {"log-probs": "ok", "engine": "ok"}
    families.main()
    assert len(asked) == 1
