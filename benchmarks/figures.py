"""What the benchmarks write under ``--json FILE``: figures, and all that one must know to compare them with others.

{"benchmark": "trace_scan", "options": {…}, "machine": {…}, "versions": {…},
 "figures": {"both 64x4096": {"value": 13.2, "unit": "ms", "better": "lower"}, …}}
"""

import argparse
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from app.errors import ConfigurationError
from app.evaluation.results import versions


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        value: positive.
        unit: such as "tokens/s" or "ms".
        better: which way is better, "higher" or "lower".
    """

    value: float
    unit: str
    better: Literal["higher", "lower"]


@dataclass(frozen=True)
class Record:
    """One run of a benchmark.

    Attributes:
        benchmark: its module in this folder.
        options: what it was run with; figures of other options are no comparison.
        machine: processor, cores and threads.
        versions: of Python and of the packages that matter.
        figures: by name.
    """

    benchmark: str
    options: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str | None]
    figures: dict[str, Figure]


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Gives a benchmark's command line its ``--json``."""
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="writes the figures there, too: see benchmarks.compare"
    )


def write(options: argparse.Namespace, benchmark: str, figures: Mapping[str, Figure], **further: Any) -> None:
    """Writes the record of a run where its command line asks for it, with whatever is ``further`` worth keeping."""
    if options.json is None:
        return
    own = {name: value for name, value in vars(options).items() if name not in ("json", "folder")}
    record = Record(benchmark, own, machine(), versions(), dict(figures))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(asdict(record) | further, indent=1) + "\n")


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        ConfigurationError: there is no such file, or it holds something else.
    """
    try:
        found = json.loads(path.read_text())
        figures = {name: Figure(**figure) for name, figure in found["figures"].items()}
        return Record(
            **{name: found[name] for name in ("benchmark", "options", "machine", "versions")}, figures=figures
        )
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path}: no figures of a benchmark; --json of a benchmark writes them") from error


def machine() -> dict[str, Any]:
    """Processor (or GPU), cores and threads that figures belong to."""
    processor = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {"processor": processor, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def _processor() -> str:
    """Linux alone says more than the architecture."""
    information = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", information.read_text()) if information.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()
