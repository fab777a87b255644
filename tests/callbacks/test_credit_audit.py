"""The credit audit beside training and under ``validate``: what it writes, and that training does not notice it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from lightning import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger

from app.data.sources import SyntheticSource
from app.engines.engine import PolicyOwner, SamplingSettings
from app.engines.transformers_engine import TransformersEngine
from app.errors import ConfigurationError
from app.quickstart import read_scalars
from app.rollout.schedule import ScheduleSettings
from callbacks import BenchmarkEvaluation, CreditAudit, IterationCheckpoint
from datamodules import SFTDataModule
from modules import SFTModule
from tests.engines.vllm.support import Owner
from tests.running import (
    equal_weights,
    fit,
    make_benchmarks,
    make_data,
    make_module,
    make_rollouts,
    make_trainer,
    policy_settings,
    weights_of,
)

VARIANTS = {"grpo", "trace_recent", "trace_both", "weight_recent", "terminal"}


def small_audit(**changes: Any) -> CreditAudit:
    settings = {"every_n_iterations": 2, "problems": 6, "completions": 4, "cut_points": 3, "continuations": 4}
    return CreditAudit(**(settings | {"gradients": True, "seed": 11} | changes))


def trained(
    folder: Path, *callbacks: Any, resume: Path | None = None, rollouts: dict[str, Any] | None = None, **trainer: Any
) -> LightningModule:
    """Four iterations of four prompts."""
    module = make_module()
    fit(folder, module, make_data(4), [*callbacks, make_rollouts(**(rollouts or {}))], resume, **trainer)
    return module


class CopyingEngine(TransformersEngine):
    """Has weights of its own, as of the last ``sync``, and may generate while the policy learns."""

    concurrent = True

    def sync(self, module: PolicyOwner) -> None:
        policy = copy.deepcopy(module.policy)
        self._module = Owner(policy, module.tokenizer, module.device, module.compute_dtype)


def read(folder: Path, iteration: int) -> dict[str, Any]:
    return json.loads((folder / "audit" / f"iteration-{iteration:06d}.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LightningModule]:
    """A run with an audit, its logger's folder, and its module."""
    root = tmp_path_factory.mktemp("audited")
    logger, saving = TensorBoardLogger(root, "run"), IterationCheckpoint(1, keep=9, folder=str(root / "checkpoints"))
    return root, trained(root, small_audit(), saving, logger=logger)


def test_a_run_with_the_audit_and_one_without_have_equal_weights_bit_for_bit(
    run: tuple[Path, LightningModule], tmp_path: Path
) -> None:
    assert equal_weights(weights_of(run[1]), weights_of(trained(tmp_path)))


def test_curves_pictures_and_files_are_written_before_the_first_iteration_on_the_way_and_at_the_end(
    run: tuple[Path, LightningModule],
) -> None:
    folder = run[0] / "run" / "version_0"
    files = sorted(path.name for path in (folder / "audit").iterdir())
    assert files == [f"iteration-{n:06d}.{kind}" for n in (0, 2, 4) for kind in ("json", "png")]
    scalars = read_scalars(folder.parent)
    assert len(scalars["audit/tokens"]) == 3
    names = {name for name in scalars if name.startswith("audit/")}
    assert {f"audit/{variant}/rank_correlation" for variant in VARIANTS} <= names
    assert {"audit/reliability", "audit/distinguished", "audit/advantage/quarter1", "audit/seconds"} <= names


def test_the_file_holds_what_the_curves_are_made_of(run: tuple[Path, LightningModule]) -> None:
    found = read(run[0] / "run" / "version_0", 0)
    assert found["problems"] == 6
    assert found["completions"] == 24
    assert found["settings"]["sampling"]["max_new_tokens"] == 10
    segments = found["segments"]
    lengths = {len(column) for column in segments.values()}
    assert lengths == {found["comparison"]["everywhere"]["segments"]}
    assert {name.removeprefix("credit/") for name in segments} >= VARIANTS
    # no ratio has moved yet: GRPO gives every token of a completion the same, and the traces its multiples
    by_row: dict[int, set[float]] = {}
    for row, credit in zip(segments["completion"], segments["credit/grpo"], strict=True):
        by_row.setdefault(row, set()).add(credit)
    assert all(max(values) - min(values) < 1e-5 for values in by_row.values())
    assert set(found["gradients"]) >= VARIANTS | {"audited"}
    bound = 6 * 4 * (10 + 4 * (10 + 6 + 2))
    assert found["tokens"] <= bound


def test_a_resumed_run_audits_as_the_uninterrupted_one(run: tuple[Path, LightningModule], tmp_path: Path) -> None:
    whole = run[0] / "checkpoints" / "iteration-000002.ckpt"
    resumed = trained(tmp_path, small_audit(), resume=whole)
    assert equal_weights(weights_of(resumed), weights_of(run[1]))
    for iteration in (2, 4):
        assert read(tmp_path, iteration) == read(run[0] / "run" / "version_0", iteration)
    assert not (tmp_path / "audit" / "iteration-000000.json").exists()


def test_a_run_that_generates_ahead_does_not_notice_it_either(tmp_path: Path) -> None:
    def ahead(*callbacks: CreditAudit) -> LightningModule:
        settings = {"engine": CopyingEngine(), "schedule": ScheduleSettings(generate_ahead=True)}
        return trained(tmp_path / str(len(callbacks)), *callbacks, rollouts=settings)

    audited = ahead(small_audit(every_n_iterations=3, gradients=False))
    assert equal_weights(weights_of(audited), weights_of(ahead()))
    assert read(tmp_path / "1", 3)["problems"] == 6


def test_validate_prints_a_section_and_writes_file_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    evaluated = BenchmarkEvaluation(SamplingSettings(temperature=0.0, max_new_tokens=6), folder=str(out))
    trainer = make_trainer(tmp_path, [small_audit(), evaluated, make_rollouts()])
    data = make_data(benchmarks=make_benchmarks(6))
    trainer.validate(make_module(), datamodule=data, verbose=False)
    shown = capsys.readouterr().out
    assert shown.index("mean tokens") < shown.index("credit audit of heldout")
    assert "6 problems, 24 completions" in shown
    rows = {line.split()[0] for line in shown.splitlines() if line.strip()}
    assert rows >= VARIANTS
    found = json.loads((out / "credit_audit.json").read_text())
    assert found["settings"]["title"] == "heldout"
    assert (out / "credit_audit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every_n_iterations": 0}, r"^audit\.every_n_iterations: must be at least 1"),
        ({"sampling": SamplingSettings(temperature=0.0)}, r"^audit\.sampling\.temperature: must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small_audit(**changes)


def test_what_a_run_does_not_have_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^audit\.problems: 17 are more than the run's 4 iterations of 4"):
        trained(tmp_path, small_audit(problems=17))
    examples = SFTDataModule(SyntheticSource(demonstrations=True), batch_size=2, iterations=1)
    with pytest.raises(ConfigurationError, match=r"^audit: needs the rollouts"):
        fit(tmp_path, SFTModule(policy_settings()), examples, [small_audit()])
    trainer = make_trainer(tmp_path, [small_audit(benchmark="held"), BenchmarkEvaluation()])
    benchmarks = make_data(benchmarks=make_benchmarks(6))
    with pytest.raises(ConfigurationError, match=r"^audit\.benchmark: unknown name 'held'.*did you mean 'heldout'"):
        trainer.validate(make_module(), datamodule=benchmarks, verbose=False)
