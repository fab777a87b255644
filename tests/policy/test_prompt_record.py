"""A policy is asked as it was in training."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from app.data.prompts import PromptSettings
from app.errors import ConfigurationError
from app.policy.prompt_record import PROMPT_RECORD, as_trained, prompt_record, read_prompt_record, write_prompt_record
from app.policy.settings import PolicySettings
from callbacks import HFExport, IterationCheckpoint
from tests.running import fit, make_data, make_module, make_rollouts

TRAINED = PromptSettings(style="qwen_math", system_prompt="Be brief.", date="2025-01-02", max_prompt_tokens=99)


def recorded(folder: Path, settings: PromptSettings = TRAINED) -> str:
    folder.mkdir(exist_ok=True)
    write_prompt_record(folder, settings)
    return str(folder)


def test_what_is_left_open_is_taken_from_the_record(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    taken, different = as_trained(PromptSettings(fallback="boxed", max_prompt_tokens=7), path)
    assert (taken.style, taken.system_prompt, taken.date, taken.max_prompt_tokens) == (
        "qwen_math",
        "Be brief.",
        "2025-01-02",
        7,
    )
    assert not different
    assert as_trained(taken, path) == (taken, "")


def test_what_is_said_stays_and_differences_are_named(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    settings = PromptSettings(style="boxed", date="2025-01-02")
    assert as_trained(settings, path) == (
        settings,
        "style 'boxed', in training 'qwen_math'; system_prompt None, in training 'Be brief.'",
    )
    own, different = as_trained(PromptSettings(date="2020-01-01"), path)
    assert own.style == "qwen_math"
    assert different == "date '2020-01-01', in training '2025-01-02'"


def test_without_a_record_the_fallback_is_asked_by(tmp_path: Path) -> None:
    settings = PromptSettings(fallback="boxed")
    for path in (None, "Qwen/Qwen2.5-7B", str(tmp_path)):
        assert as_trained(settings, path) == (settings, "")
    assert settings.resolve() == PromptSettings(style="boxed").resolve()


def test_a_template_file_is_recorded_by_its_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("{problem}\nBriefly.")
    path = recorded(tmp_path / "hf", PromptSettings(template_file=str(file)))
    file.unlink()
    assert as_trained(PromptSettings(), path)[0].resolve().template == "{problem}\nBriefly."


@pytest.mark.parametrize("content", ["{", '{"style": "telepathy"}', '{"mood": 1}'])
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / PROMPT_RECORD).write_text(content)
    with pytest.raises(ConfigurationError, match=r"policy\.path: .*cannot be read .*delete prompt\.json"):
        read_prompt_record(str(tmp_path))


def test_exports_and_checkpoints_of_a_run_hold_it_and_the_next_run_reads_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(name: str, prompt: PromptSettings, **module: Any) -> PromptSettings:
        data = make_data(iterations=1, prompt=prompt)
        callbacks = [make_rollouts(), HFExport(str(tmp_path / name)), IterationCheckpoint(1)]
        fit(tmp_path / f"run-{name}", make_module(**module), data, callbacks)
        return data.prompt

    own = PromptSettings(template="Solve: {problem}", chat="always")
    run("first", own)
    assert json.loads((tmp_path / "first" / PROMPT_RECORD).read_text()) == prompt_record(own)
    checkpoints = list(tmp_path.glob("run-first/**/*.ckpt"))
    assert {prompt_record(read_prompt_record(str(each)))["template"] for each in checkpoints} == {own.template}
    second = run("second", PromptSettings(), policy=PolicySettings(path=str(tmp_path / "first")))
    assert second.resolve() == own.resolve()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run("third", PromptSettings(style="raw"), policy=PolicySettings(path=str(tmp_path / "first")))
    assert any("data.prompt is not that which" in line and "'Solve: {problem}'" in line for line in caplog.messages)
