"""The credit audit from the command line: its cost beforehand, and what ``fit`` and ``validate`` leave."""

import json
from pathlib import Path

import pytest
import yaml

from app.cli.main import main
from app.quickstart import read_scalars
from tests.cli.small_run import small_run

SIZES = {"problems": 4, "completions": 2, "cut_points": 2, "continuations": 2}
AUDIT = [word for name, value in SIZES.items() for word in (f"--audit.{name}", str(value))]
COST = "at most 32 continuations and 3,200 tokens"
"""4 × 2 completions of at most 100 tokens, and two continuations of 100 and of 50 for each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def arguments(folder: Path) -> list[str]:
    return small_run(folder, {"class_path": "TransformersEngine"})


def test_a_dry_run_says_what_it_costs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, *AUDIT, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "credit audit\n  before the first iteration, every 10 and at the end, 2 times in all\n" in shown
    assert COST in shown


def test_fit_leaves_curves_files_and_pictures_and_validate_a_section(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main([*arguments, *AUDIT, "--data.iterations", "1", "--audit.gradients", "true"]) == 0
    files = {path.name for path in (folder / "run" / "version_0" / "audit").iterdir()}
    assert files == {f"iteration-{n:06d}.{kind}" for n in (0, 1) for kind in ("json", "png")}
    assert len(read_scalars(folder / "run")["audit/reward"]) == 2
    source = {"class_path": "SyntheticSource", "init_args": {"split": "heldout", "size": 4}}
    heldout = ["--data.benchmarks", json.dumps({"heldout": {"source": source}})]
    evaluated = ["--evaluation.sampling.max_new_tokens", "8", "--evaluation.folder", str(folder / "out")]
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    settings["model"]["init_args"]["policy"] = {"path": str(folder / "hf")}
    (folder / "validate.yaml").write_text(yaml.safe_dump(settings))
    capsys.readouterr()
    assert main(["validate", "--config", str(folder / "validate.yaml"), *AUDIT, *heldout, *evaluated]) == 0
    (said,) = [line for line in caplog.messages if line.startswith("credit audit of heldout: 8 completions")]
    assert said.endswith(COST)
    assert "credit audit of heldout: mean reward" in capsys.readouterr().out
    assert json.loads((folder / "out" / "credit_audit.json").read_text())["settings"]["problems"] == 4


def test_an_audit_without_rollouts_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "configs/quickstart/warm_start.yaml", *AUDIT]) == 2
    assert "error: audit: needs the rollouts of GRPO-λ" in capsys.readouterr().err
