"""What a resumed run stands on besides its checkpoint: frozen weights, and the answers that it is measured by."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from app.data.sources import JsonLinesSource
from app.engines.engine import SamplingSettings
from app.errors import ConfigurationError
from app.policy.checkpoints import verify_source
from app.policy.exporting import save_policy
from app.policy.fingerprints import source_fingerprint
from app.policy.lora import LoraSettings
from app.policy.models import PolicySettings, load_policy, load_tokenizer
from callbacks import BenchmarkEvaluation, IterationCheckpoint
from datamodules.base import BenchmarkSettings
from tests.running import equal_weights, fit, make_data, make_module, make_rollouts, policy_settings, weights_of

KL = {"beta": 0.05}
LORA = LoraSettings(r=2)


def export(folder: Path, seed: int) -> Path:
    return save_policy(load_policy(policy_settings(), seed), load_tokenizer(policy_settings()), folder)


def start(folder: Path, module: Any, *more: Any, data: Any = None) -> Path:
    """The checkpoint of a run of two iterations."""
    keep = IterationCheckpoint(9, folder=str(folder / "c"))
    fit(folder, module, data or make_data(iterations=2), [make_rollouts(), keep, *more])
    return folder / "c" / "last.ckpt"


def resume(folder: Path, module: Any, checkpoint: Path, *more: Any, data: Any = None) -> Any:
    fit(folder, module, data or make_data(iterations=3), [make_rollouts(), *more], checkpoint)
    return module


def test_a_reference_that_was_overwritten_since_is_refused_and_one_of_the_same_content_is_not(tmp_path: Path) -> None:
    settings = PolicySettings(path=str(export(tmp_path / "base", 1)))
    checkpoint = start(tmp_path, make_module(KL, policy=settings))
    same = PolicySettings(path=str(export(tmp_path / "moved", 1)))
    resume(tmp_path, make_module(KL, policy=same), checkpoint)
    export(tmp_path / "base", 2)
    with pytest.raises(ConfigurationError, match=r"model\.policy\.path: .*is not what the run of the checkpoint began"):
        resume(tmp_path, make_module(KL, policy=settings), checkpoint)
    resume(tmp_path, make_module(policy=settings), checkpoint)  # no reference: all weights are in the checkpoint
    resume(tmp_path, make_module(KL, policy=replace(settings, verify=False)), checkpoint)


def test_a_reference_that_another_seed_would_draw_is_refused(tmp_path: Path) -> None:
    checkpoint = start(tmp_path, make_module(KL))
    with pytest.raises(ConfigurationError, match=r"model\.policy\.config: .*config and seed_everything draw"):
        resume(tmp_path, make_module(KL, seed=4), checkpoint)


def test_adapters_are_not_put_around_other_weights_neither_resumed_nor_as_a_policy(tmp_path: Path) -> None:
    settings = PolicySettings(path=str(export(tmp_path / "base", 1)), lora=LORA)
    checkpoint = start(tmp_path, make_module(policy=settings))
    verify_source(PolicySettings(path=str(checkpoint)))
    before = weights_of(resume(tmp_path, make_module(policy=settings), checkpoint))
    export(tmp_path / "base", 2)
    with pytest.raises(ConfigurationError, match="is not what the run of the checkpoint began with"):
        resume(tmp_path, make_module(policy=settings), checkpoint)
    with pytest.raises(ConfigurationError, match=r"policy\.path: the adapters in .* were trained around other weights"):
        verify_source(PolicySettings(path=str(checkpoint)))
    export(tmp_path / "base", 1)
    assert equal_weights(weights_of(resume(tmp_path, make_module(policy=settings), checkpoint)), before)


def test_fingerprints_are_of_weights_and_not_of_places(tmp_path: Path) -> None:
    one, same, other = (export(tmp_path / name, seed) for name, seed in (("one", 1), ("same", 1), ("other", 2)))
    found = [source_fingerprint(PolicySettings(path=str(path)), 0) for path in (one, same, other)]
    assert found[0] == found[1] != found[2]
    (one / "checksums.json").unlink()  # read from the files then
    (one / "config.json").write_text((one / "config.json").read_text() + "\n")
    assert source_fingerprint(PolicySettings(path=str(one)), 0) == found[0]
    drawn = policy_settings()
    assert source_fingerprint(drawn, 1) == source_fingerprint(policy_settings(), 1) != source_fingerprint(drawn, 2)
    assert source_fingerprint(drawn, 1) != source_fingerprint(policy_settings(num_hidden_layers=1), 1)
    assert asdict(drawn)["verify"]


def test_answers_that_changed_since_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "heldout.jsonl"
    file.write_text('{"problem": "1 + 1 ?", "answer": "2"}\n')

    def data(iterations: int) -> Any:
        return make_data(iterations, benchmarks={"heldout": BenchmarkSettings(JsonLinesSource(str(file)))})

    def evaluation() -> BenchmarkEvaluation:
        return BenchmarkEvaluation(SamplingSettings(temperature=0.0, max_new_tokens=4), grader_workers=1)

    checkpoint = start(tmp_path, make_module(), evaluation(), data=data(2))
    resume(tmp_path, make_module(), checkpoint, evaluation(), data=data(3))
    assert "do not compare" not in caplog.text
    file.write_text('{"problem": "1 + 1 ?", "answer": "3"}\n')
    resume(tmp_path, make_module(), checkpoint, evaluation(), data=data(3))
    assert "data.benchmarks.heldout: its problems or answers are not those that the checkpoint's run" in caplog.text
