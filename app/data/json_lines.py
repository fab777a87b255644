"""JSON lines, row by row, whatever is wrong with some of them."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.data.rows import MalformedRowError


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, row or the reason why the line cannot be read); blank lines are passed over.

    UTF-8, with or without a byte order mark; lines end in LF or CRLF.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _row(line.removeprefix(codecs.BOM_UTF8))


def _row(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        is_utf16 = line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return MalformedRowError("is UTF-16, not UTF-8" if is_utf16 else f"is not UTF-8 (byte {error.start})")
    except (ValueError, RecursionError) as error:
        hint = "; JSON lines hold one object a line, without an array around them" if line.startswith(b"[") else ""
        return MalformedRowError(f"is not JSON ({error}){hint}")
