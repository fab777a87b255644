"""Whether files are still what was written: the checksums in archives, and a list of files with theirs in folders.

``torch.save`` puts a CRC-32 beside each record of its archive, which ``torch.load`` does not look at. A folder (an
export, a sharded checkpoint) gets a list of what belongs to it. Problems are returned as text that goes on after a
file's name: "ends early", "the record data/3 is damaged".
"""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
LIST = "checksums.json"
"""The name of a folder's list: ``{"algorithm": "crc32", "files": {name: {"bytes": n, "crc32": "8 digits"}}}``."""
_BLOCK = 8 << 20
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(ValueError, RuntimeError, NotImplementedError, OverflowError, MemoryError),
)
"""What Python's reader of archives raises over a file with wrong bytes in it."""
_THREADS = min(8, os.cpu_count() or 1)  # zlib works outside of Python's lock


def check_archive(path: Path, contents: bool = True) -> str | None:
    """What is wrong with the archive that ``torch.save`` wrote at ``path``; None where nothing is.

    Args:
        contents: read all of it and compare the checksums; otherwise its table of contents alone.
    """
    try:
        if path.stat().st_size == 0:
            return "is empty"
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return "is no checkpoint: torch.save did not write it"
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except _BROKEN as error:
        return f"ends early or is damaged: {error}"
    if not any(record.filename.endswith("/data.pkl") for record in records):
        return "is no checkpoint: it is another kind of archive"
    if not contents:
        return None
    shares = [records[first::_THREADS] for first in range(_THREADS)]
    return _first(shares, lambda share: _damaged_record(path, share))


def archive_fingerprint(path: Path) -> str:
    """Eight hexadecimal digits that depend on every record's name and checksum; reads the table of contents alone.

    Raises:
        OSError, zipfile.BadZipFile: it is not there, or no archive.
    """
    with zipfile.ZipFile(path) as archive:
        # The serialization id differs between two files of the same content.
        rows = [(each.filename.split("/", 1)[-1], each.CRC) for each in archive.infolist()]
    return _digits(zlib.crc32(repr(sorted(row for row in rows if not row[0].startswith(".data/"))).encode()))


def file_checksum(path: Path) -> str:
    """CRC-32 of a file, as eight hexadecimal digits."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return _digits(checksum)


def list_files(folder: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Entries for :func:`write_list`: of all files in ``folder``, or of those called ``names``."""
    if names is None:
        names = file_names(folder)

    def entry(name: str) -> dict[str, Any]:
        return {"bytes": (folder / name).stat().st_size, "crc32": file_checksum(folder / name)}

    return dict(zip(names, _all(names, entry), strict=True))


def file_names(folder: Path) -> list[str]:
    """The files in ``folder`` and below, by their path in it, without the list itself."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != LIST)


def write_list(folder: Path, entries: dict[str, Any]) -> None:
    """Writes down what belongs to ``folder``, into which nothing is written afterwards."""
    content = {"algorithm": "crc32", "files": entries}
    (folder / LIST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def check_folder(folder: Path, contents: bool = True) -> str | None:
    """What is wrong with a folder that has a list; None where nothing is, or where there is no list.

    Args:
        contents: read the files and compare their checksums; otherwise only look whether they are there.
    """
    if not (folder / LIST).is_file():
        return None
    try:
        entries = json.loads((folder / LIST).read_text())["files"]
        rows = [(name, int(row["bytes"]), str(row["crc32"])) for name, row in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return f"has a damaged {LIST} ({type(error).__name__}: {error})"
    for name, size, _ in rows:
        file = folder / name
        if not file.is_file():
            return f"lacks {name}, which {LIST} names"
        if file.stat().st_size != size:
            return f"is damaged: {name} has {file.stat().st_size:,} bytes, {size:,} were written"
    if not contents:
        return None
    return _first(rows, lambda row: _changed(folder, row[0], row[2]))


def _changed(folder: Path, name: str, checksum: str) -> str | None:
    if file_checksum(folder / name) == checksum:
        return None
    return f"is damaged: {name} is not what was written (its checksum differs)"


def _damaged_record(path: Path, records: Sequence[zipfile.ZipInfo]) -> str | None:
    with zipfile.ZipFile(path) as archive:
        for record in records:
            try:
                with archive.open(record) as file:
                    while file.read(_BLOCK):
                        pass
            except _BROKEN:
                return f"is damaged: its record {record.filename.split('/', 1)[-1]} is not what was written"
    return None


def _first(items: Sequence[T], check: Callable[[T], str | None]) -> str | None:
    return next((problem for problem in _all(items, check) if problem), None)


def _all(items: Sequence[T], action: Callable[[T], Any]) -> list[Any]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(action, items))


def _digits(checksum: int) -> str:
    return f"{checksum:08x}"
