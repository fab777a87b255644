"""Tables, histograms, pictures and settings for whatever loggers a run has; scalars reach all of them by Lightning.

TensorBoard, W&B, MLflow and CSV files each keep a kind of thing in their own way: a function for each kind, with a
branch for each logger. To be called on rank 0.
"""

import csv
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from callbacks.markdown import table

log = logging.getLogger(__name__)

BINS = 64
"""Of a histogram, where TensorBoard does not choose them."""
_told: set[type] = set()


def log_table(
    loggers: Sequence[Logger],
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    step: int,
    above: str = "",
) -> None:
    """A table of texts: TensorBoard's Text tab, a table of W&B, an artifact ``<name>/<step>.json`` of MLflow, or a file
    ``<name>/<step>.csv``.

    Args:
        loggers: of the trainer.
        name: of the table; each step has one.
        columns: their heads.
        rows: their cells, as they are: whatever a renderer would obey is escaped here.
        step: the iteration, from 0.
        above: Markdown that TensorBoard shows above the table.
    """
    rows = [[cell.encode(errors="replace").decode() for cell in row] for row in rows]  # no lone surrogates
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            text = "\n\n".join(filter(None, (above, table(columns, rows))))
            logger.experiment.add_text(name, text, step)
        elif isinstance(logger, WandbLogger):
            logger.log_table(name, columns=list(columns), data=[list(row) for row in rows], step=step)
        elif isinstance(logger, MLFlowLogger):
            held = {head: [row[index] for row in rows] for index, head in enumerate(columns)}
            logger.experiment.log_table(logger.run_id, held, f"{name}/{step:06d}.json")
        elif isinstance(logger, CSVLogger):
            with _file(logger, name, step, "csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([columns, *rows])
        else:
            _tell(logger, "tables")


def log_histogram(loggers: Sequence[Logger], name: str, values: np.ndarray, step: int) -> None:
    """A distribution: TensorBoard's Histograms tab, a histogram of W&B, an artifact ``histograms/<name>/<step>.json``
    of MLflow (``counts`` between ``edges``), or rows (step, low, high, count) of ``histograms/<name>.csv``.

    Args:
        loggers: of the trainer.
        name: of the distribution.
        values: finite numbers of any shape; of none there is no histogram.
        step: the iteration, from 0.
    """
    if not values.size:
        return
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(name, values, step)
            continue
        counts, edges = np.histogram(values, BINS)
        if isinstance(logger, WandbLogger):
            import wandb

            histogram: Any = wandb.Histogram(np_histogram=(counts, edges))
            logger.log_metrics({name: histogram}, step)
        elif isinstance(logger, MLFlowLogger):
            held = {"edges": edges.tolist(), "counts": counts.tolist()}
            logger.experiment.log_dict(logger.run_id, held, f"histograms/{name}/{step:06d}.json")
        elif isinstance(logger, CSVLogger):
            _append(logger, name, zip(edges[:-1], edges[1:], counts, strict=True), step)
        else:
            _tell(logger, "histograms")


def log_image(loggers: Sequence[Logger], name: str, image: np.ndarray, step: int) -> None:
    """A picture: TensorBoard's Images tab, an image of W&B, or a file ``<name>/<step>.png``, with MLflow among the
    run's artifacts.

    Args:
        loggers: of the trainer.
        name: of the picture; each step has one.
        image: [height, width, 3], 0 to 255 in uint8.
        step: the iteration, from 0.
    """
    from PIL import Image

    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, image, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [Image.fromarray(image)], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, image, f"{name}/{step:06d}.png")
        elif isinstance(logger, CSVLogger):
            Image.fromarray(image).save(_file(logger, name, step, "png"))
        else:
            _tell(logger, "pictures")


def log_settings(
    loggers: Sequence[Logger], settings: Mapping[str, Any], metrics: Sequence[str], first: Collection[str] = ()
) -> None:
    """What runs are compared by: TensorBoard's HParams tab, W&B's config, MLflow's parameters, ``hparams.yaml``.

    Lightning's own way to TensorBoard writes a value of its own choice for each metric, at a step of its own choice, as
    a curve. Here the tab shows the last value of curves that the run has.

    Args:
        loggers: of the trainer.
        settings: name → value.
        metrics: the curves whose last values stand beside them.
        first: settings that TensorBoard shows before all others; it ticks five, in the order of the alphabet.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            _log_session(logger, settings, metrics, first)
        else:
            logger.log_hyperparams(dict(settings))


def _log_session(
    logger: TensorBoardLogger, settings: Mapping[str, Any], metrics: Sequence[str], first: Collection[str]
) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    known = (bool, int, float, str)
    shown = {name: value if isinstance(value, known) else str(value).lower() for name, value in settings.items()}
    experiment, start, _ = hparams(shown, dict.fromkeys(metrics, 0.0))
    held = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(held.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in first  # by which the page sorts its columns
    held.content = content.SerializeToString()
    for summary in (experiment, start):
        logger.experiment.file_writer.add_summary(summary)


def _file(logger: CSVLogger, name: str, step: int, kind: str) -> Path:
    path = Path(logger.log_dir) / name / f"{step:06d}.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _append(logger: CSVLogger, name: str, bins: Any, step: int) -> None:
    path = Path(logger.log_dir) / "histograms" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("step", "low", "high", "count")] * fresh)
        writer.writerows((step, *each) for each in bins)


def _tell(logger: Logger, kind: str) -> None:
    if type(logger) not in _told:
        _told.add(type(logger))
        log.warning("%s gets scalars alone: how it keeps %s is not known here", type(logger).__name__, kind)
