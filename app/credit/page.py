"""One HTML file with all records of a run: it needs no network, no server and no other file.

Model text is untrusted. It stands in the file as JSON in which no ``<`` occurs, the script puts it on the page as text
alone, and the page's own policy lets nothing run or load but the script and the style that are written here.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from app.credit.journal import read_lines
from app.storage.durable import write_bytes

HERE = Path(__file__).parent
PARTS = {"css": ("page.css",), "js": ("values.js", "page.js")}


def write_page(journal: Path, page: Path, title: str) -> int:
    """Writes the page of a journal's records in one step.

    Args:
        journal: see :class:`app.credit.journal.Journal`.
        page: where to.
        title: of the run.

    Returns:
        How many groups are on it.

    Raises:
        ConfigurationError: a line of the journal is no record.
        OSError: the page cannot be written.
    """
    lines = [line for line, _ in read_lines(journal)]
    write_bytes(page, render(b",".join(line.rstrip(b"\n") for line in lines), {"title": title}))
    return len(lines)


def render(records: bytes, about: Mapping[str, str]) -> bytes:
    """The page as UTF-8.

    Args:
        records: JSON objects in ASCII, separated by commas.
        about: "title".
    """
    parts = {name: "".join(map(_read, files)) for name, files in PARTS.items()}
    data = b'{"about":' + json.dumps(about).encode() + b',"groups":[' + records + b"]}"
    values = {
        "title": escape(about["title"]),
        "policy": f"default-src 'none'; style-src {_hash(parts['css'])}; script-src {_hash(parts['js'])}",
        **parts,
        # within strings alone can a < stand in JSON, and there it may be written so
        "data": data.decode("ascii").replace("<", "\\u003c"),
    }
    template = _read("page.html")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template).encode()


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
