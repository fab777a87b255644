"""The records of a run in a file that a kill cannot harm: one JSON line a group, appended and synced.

Beyond a size the file is thinned: of the iterations in it, those go first that lie closest between their neighbours, so
that what is left covers the whole run evenly.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import ConfigurationError
from app.storage.durable import write_bytes

MEGABYTE = 10**6


@dataclass(frozen=True)
class Journal:
    """A run's file of records.

    Attributes:
        path: of the file, which the first append makes.
        limit: of its size, in bytes. One iteration is kept whatever its size.
    """

    path: Path
    limit: int

    def append(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Writes records of one iteration, and returns when they are on disk.

        Returns:
            How many earlier iterations had to go for them.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(b"".join(_line(record) for record in records))
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        return self._thin() if size > self.limit else 0

    def continue_from(self, former: Path, done: int) -> int:
        """Takes over what ``former`` (it may be this file) holds of the iterations up to ``done``, counted from 1.

        A resumed run does those that came later again.

        Returns:
            How many records there are.
        """
        lines = [line for line, record in read_lines(former) if record["iteration"] <= done]
        write_bytes(self.path, b"".join(lines))
        return len(lines)

    def _thin(self) -> int:
        """Down to half of the limit, so that it is not done at each append."""
        found = read_lines(self.path)
        sizes: dict[int, int] = {}
        for line, record in found:
            sizes[record["iteration"]] = sizes.get(record["iteration"], 0) + len(line)
        kept = sorted(sizes)
        while len(kept) > 1 and sum(sizes[each] for each in kept) > self.limit / 2:
            kept.remove(crowded(kept))
        write_bytes(self.path, b"".join(line for line, record in found if record["iteration"] in kept))
        return len(sizes) - len(kept)


def crowded(iterations: Sequence[int]) -> int:
    """The one whose neighbours lie closest together; the first and the last stay as long as there are others."""
    if len(iterations) < 3:
        return iterations[0]
    triples = zip(iterations, iterations[1:], iterations[2:], strict=False)
    return min(triples, key=lambda three: three[2] - three[0])[1]


def read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of a journal with their records, less a last one that a kill tore; none where there is no file.

    Raises:
        ConfigurationError: a line is no record.
    """
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            record["iteration"] + 0
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{path}, line {number}: no record of credit ({error!r}); delete it") from error
        found.append((line + b"\n", record))
    return found


def _line(record: Mapping[str, Any]) -> bytes:
    # ASCII escapes: completions hold lone surrogates and line separators
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
