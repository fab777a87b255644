"""Sharded checkpoints, read without running anything that they bring along.

PyTorch's reader unpickles the table of contents (``.metadata``) and everything that is no tensor with the full
unpickler, which calls whatever a file names. Here both are read by an allow-list: torch's own classes for the table,
and what ``torch.load(weights_only=True)`` takes for the rest.
"""

import contextlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

METADATA = ".metadata"
META = "meta.pt"
"""What a sharded checkpoint holds besides tensors."""
_TABLE = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *(
        (_TABLE, name)
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
            *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
    ("pathlib._local", "PosixPath"),
}


_DAMAGED = (EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError, MemoryError, OverflowError)
"""What Python's unpickler raises over a file with wrong bytes in it, besides its own error."""


def is_sharded(path: Path) -> bool:
    """Whether there is a checkpoint that several ranks wrote."""
    return path.is_dir() and (path / META).is_file()


def read_table(folder: Path) -> Any:
    """The ``Metadata`` of the sharded checkpoint in ``folder``.

    Raises:
        pickle.UnpicklingError: it names something that has no place there, or is damaged.
        OSError: it cannot be read.
    """
    try:
        with (folder / METADATA).open("rb") as file:
            table = _TableUnpickler(file).load()
    except _DAMAGED as error:
        raise pickle.UnpicklingError(f"{METADATA} is damaged ({type(error).__name__}: {error})") from error
    if not hasattr(table, "state_dict_metadata") or not isinstance(table.storage_data, dict):
        raise pickle.UnpicklingError(f"{METADATA} is no table of a sharded checkpoint")
    return table


def check_shards(folder: Path) -> str | None:
    """What is missing of the sharded checkpoint in ``folder``, by its own table; None where nothing is."""
    try:
        places = [(str(at.relative_path), at.offset + at.length) for at in read_table(folder).storage_data.values()]
        for name, end in places:
            if not (folder / name).is_file():
                return f"lacks {name}"
            if (folder / name).stat().st_size < end:
                return f"is damaged: {name} ends early"
    except (pickle.UnpicklingError, OSError, *_DAMAGED) as error:
        return f"is damaged: {' '.join(str(error).split())}"
    return None


@contextlib.contextmanager
def data_only() -> Iterator[None]:
    """Inside, PyTorch's reader of sharded checkpoints takes data alone, whoever calls it.

    Raises:
        pickle.UnpicklingError: from the reader, where a checkpoint brings something else along.
    """
    from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader

    former_table, former_bytes = FileSystemReader.read_metadata, DefaultLoadPlanner.load_bytes

    def read_metadata(self: Any, *_: Any, **__: Any) -> Any:
        table = read_table(Path(self.path))
        table.storage_meta = table.storage_meta or _storage_meta()
        table.storage_meta.load_id = self.load_id
        return table

    def load_bytes(self: Any, read_item: Any, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # raises what the full unpickler would have run
        value.seek(0)
        former_bytes(self, read_item, value)

    FileSystemReader.read_metadata, DefaultLoadPlanner.load_bytes = read_metadata, load_bytes
    try:
        yield
    finally:
        FileSystemReader.read_metadata, DefaultLoadPlanner.load_bytes = former_table, former_bytes


def _storage_meta() -> Any:
    from torch.distributed.checkpoint.metadata import StorageMeta

    return StorageMeta()


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{METADATA} names {module}.{name}, which has no place in a checkpoint")
