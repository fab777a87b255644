"""What a run's loggers keep beside scalars, read back from the files that their offline modes write."""

import csv
import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import CompletionsTable, Dashboard
from callbacks.loggers import log_histogram, log_image, log_settings, log_table
from tests.running import fit, make_data, make_module, make_rollouts

COLUMNS, ROWS = ["problem", "completion"], [["1 + 1", "2 | **3**\nline"], ["?", "\ud800, é"]]
VALUES = np.array([0.0, 0.1, 0.1, 0.9, 1.0])
PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
SETTINGS = {"lr": 1e-3, "style": "both", "clamp_negative": None}


def keep_all(logger: Logger) -> None:
    log_table([logger], "completions", COLUMNS, ROWS, 7, above="first prompt")
    log_histogram([logger], "learning/rewards", VALUES, 7)
    log_histogram([logger], "policy/log_ratios", np.zeros(0), 7)
    log_image([logger], "credit", PICTURE, 7)
    log_settings([logger], SETTINGS, ["reward"])
    logger.log_metrics({"traces/both/clip_fraction/all": 0.5, "eval/aime/pass@8": 0.25}, 7)


def test_csv_files(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "run")
    keep_all(logger)
    logger.finalize("success")
    run = tmp_path / "run" / "version_0"
    with (run / "completions" / "000007.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [COLUMNS, ROWS[0], ["?", "?, é"]]
    with (run / "histograms" / "learning" / "rewards.csv").open(newline="") as file:
        bins = list(csv.DictReader(file))
    assert sum(int(each["count"]) for each in bins) == len(VALUES)
    assert (float(bins[0]["low"]), float(bins[-1]["high"]), int(bins[0]["count"])) == (0.0, 1.0, 1)
    assert np.array_equal(np.asarray(Image.open(run / "credit" / "000007.png")), PICTURE)
    assert yaml.safe_load((run / "hparams.yaml").read_text()) == SETTINGS
    assert (run / "metrics.csv").read_text().splitlines()[1].startswith("0.25")


def test_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "run")
    keep_all(logger)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0, "histograms": 0}).Reload()
    assert events.Tags()["histograms"] == ["learning/rewards"]
    (kept,) = events.Histograms("learning/rewards")
    assert (kept.step, kept.histogram_value.num, kept.histogram_value.max) == (7, 5, 1.0)
    (picture,) = events.Images("credit")
    assert (picture.step, picture.height, picture.width) == (7, 4, 6)
    (text,) = events.Tensors("completions/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert shown.startswith("first prompt\n\n| problem | completion |\n|---|---|\n| 1 &#43; 1 | 2 &#124; &#42;&#42;3")
    assert events.Tags()["scalars"] == ["traces/both/clip_fraction/all", "eval/aime/pass@8"], "no curve of our own"


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("run", save_dir=str(tmp_path))
    keep_all(logger)
    logger.finalize("success")
    (run,) = tmp_path.glob("*/" + str(logger.run_id))
    table = json.loads((run / "artifacts" / "completions" / "000007.json").read_text())
    assert (table["columns"], table["data"][0]) == (COLUMNS, ROWS[0])
    histogram = json.loads((run / "artifacts" / "histograms" / "learning" / "rewards" / "000007.json").read_text())
    assert sum(histogram["counts"]) == len(VALUES)
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert np.array_equal(np.asarray(Image.open(run / "artifacts" / "credit" / "000007.png")), PICTURE)
    assert (run / "params" / "style").read_text() == "both"
    assert (run / "metrics" / "eval" / "aime" / "pass8").read_text().split()[1:] == ["0.25", "7"]


def records(folder: Path) -> list[dict[str, Any]]:
    """The rows of an offline W&B run; the parts of a nested value have keys of their own. Its file is LevelDB's log of
    messages behind a head of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows = []
    for message in messages(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(message)
        if record.HasField("history"):
            items = record.history.item
            rows.append({each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in items})
    return rows


def messages(data: bytes) -> Iterator[bytes]:
    """Of a log in LevelDB's format: blocks of 32 KiB, in them chunks with checksum, length and kind (whole, first,
    middle, last)."""
    place, held, block = 7, b"", 32 * 1024
    while place + 7 <= len(data):
        if block - place % block < 7:  # what is left of a block holds no chunk's head
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        held += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield held
            held = b""


def test_wandb_offline_keeps_what_a_real_run_logs(tmp_path: Path) -> None:
    logger = WandbLogger(name="run", offline=True, save_dir=tmp_path)
    callbacks = [make_rollouts(), Dashboard(1), CompletionsTable(1, prompts=1)]
    fit(tmp_path, make_module(), make_data(iterations=2), callbacks, logger=logger)
    log_image([logger], "credit", PICTURE, 1)
    settings = dict(logger.experiment.config)
    logger.experiment.finish()
    rows = records(tmp_path)
    steps = [row["trainer/global_step"] for row in rows if "reward" in row]
    assert steps == [0, 1]
    kinds = {name.removesuffix("/_type"): row[name] for row in rows for name in row if name.endswith("/_type")}
    assert kinds["completions"] == "table-file"
    assert kinds["learning/rewards"] == kinds["traces/both/z"] == "histogram"
    assert kinds["credit"] == "images/separated"
    assert settings["application"] == "trace"


def test_a_logger_that_is_not_known_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    class Other(CSVLogger.__mro__[1]):  # type: ignore[misc,name-defined]  # Lightning's Logger, without CSV files
        name = version = experiment = None

        def log_metrics(self, *_: Any) -> None: ...

        def log_hyperparams(self, *_: Any) -> None: ...

    with caplog.at_level(logging.WARNING, "callbacks"):
        keep_all(Other())
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == "Other gets scalars alone: how it keeps tables is not known here"
