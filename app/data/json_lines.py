"""JSON lines, row by row, whatever is wrong with some of them."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.data.rows import MalformedRowError
from app.errors import ConfigurationError

COMPRESSED = {"gzip": b"\x1f\x8b", "zip": b"PK\x03\x04", "zstd": b"\x28\xb5\x2f\xfd", "xz": b"\xfd7zXZ"}
"""What files of these kinds begin with."""
NO_ARRAY = "; JSON lines hold one object a line, without an array around them"


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, row or the reason why the line cannot be read); blank lines are passed over.

    UTF-8, with or without a byte order mark; lines end in LF or CRLF.

    Raises:
        ConfigurationError: the file is compressed.
    """
    with path.open("rb") as lines:
        for name, start in COMPRESSED.items():
            if lines.peek(len(start)).startswith(start):
                raise ConfigurationError(f"{path} is compressed ({name}): give the file that it unpacks to", key="path")
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _row(line.removeprefix(codecs.BOM_UTF8))


def _row(line: bytes) -> Any:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        is_utf16 = line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return MalformedRowError("is UTF-16, not UTF-8" if is_utf16 else f"is not UTF-8 (byte {error.start})")
    except (ValueError, RecursionError) as error:
        return MalformedRowError(f"is not JSON ({error}){NO_ARRAY if line.startswith(b'[') else ''}")
    return MalformedRowError(f"is a list{NO_ARRAY}") if isinstance(row, list) else row
