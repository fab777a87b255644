"""Where models and tokenizers come from: folders and hub ids, and how failures to load them are told."""

import contextlib
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import NoReturn
from zipfile import BadZipFile

from app.errors import ConfigurationError, closest


def check_source(source: str, key: str, needed: tuple[str, ...], one_of: tuple[str, ...]) -> None:
    """Refuses what is neither a folder with these files nor looks like a hub id."""
    folder = Path(source).expanduser()
    if not folder.exists():
        # "runs/policy" is a hub id by its looks; a folder "runs" here tells what was meant
        is_hub_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source) and Path(source).parts[0] not in os.listdir()
        if not is_hub_id:
            raise ConfigurationError(f"no such folder: {source}{nearest_sibling(folder)}", key=key)
        return
    if not folder.is_dir():
        raise ConfigurationError(f"{source} is a file; give the folder that holds the model", key=key)
    for name in needed:
        if not (folder / name).is_file():
            raise ConfigurationError(f"{source} is no HF model folder: it holds no {name}", key=key)
    if not any(any(folder.glob(pattern)) for pattern in one_of):
        raise ConfigurationError(f"{source} holds none of {', '.join(one_of)}", key=key)


def check_replaceable(folder: Path, key: str) -> None:
    """Refuses to put an exported model in the place of anything but a model, or of an empty folder.

    Raises:
        ConfigurationError: there is a file, or a folder with other things in it, which would be lost.
    """
    if folder.is_file():
        raise ConfigurationError(f"{folder} is a file; give a folder", key=key)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        message = f"{folder} holds other files than a model's, which the export would replace: give a folder of its own"
        raise ConfigurationError(message, key=key)


def nearest_sibling(path: Path) -> str:
    """ "; did you mean …?" with the name most like ``path``'s in its folder; empty where there is none."""
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    near = closest(path.name, names)
    return f"; did you mean {path.parent / near}?" if near else ""


def expanded(source: str) -> str:
    """A folder with its ``~`` resolved; a hub id as it is."""
    folder = Path(source).expanduser()
    return str(folder) if folder.exists() else source


@contextlib.contextmanager
def loading(what: str, source: str, key: str) -> Iterator[None]:
    """Turns what transformers raises over bad files or settings into one line that names ``source``."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    kinds = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, ZeroDivisionError)
    # *.bin: pickles, which are not run, and damaged ones
    of_bin = (UnpicklingError, EOFError, BadZipFile, struct.error, IndexError, AttributeError, MemoryError)
    try:
        yield
    except (*kinds, *of_bin, SafetensorError, StrictDataclassError) as error:
        cause = " ".join(str(error).split())
        message = f"cannot load the {what} of {source}: {type(error).__name__}: {cause[:400]}"
        raise ConfigurationError(message, key=key) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars, load reports and advice of transformers."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def refuse_untied(name: str, other: str, source: str) -> NoReturn:
    """Refuses a model whose configuration ties two tensors that its files hold with different values: transformers 5
    would use both, other readers one of them."""
    refuse(
        f"config.json in {source} says tie_word_embeddings: true, but {name} there is not {other}: set it to false "
        "there, and both are used",
        "path",
    )


def refuse(message: str, key: str) -> NoReturn:
    """Raises :class:`ConfigurationError`, blaming ``key`` of the policy's settings."""
    raise ConfigurationError(message, key=f"policy.{key}")
