"""The credit of one group as a picture for a logger: a row of bars for each completion and variant."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app.credit.records import Numbers

if TYPE_CHECKING:
    import numpy

COMPLETIONS = 4
"""The best and the worst of a group: half of each."""
LABEL, WIDTH, ROW, TITLE, MARGIN = 210, 990, 22, 26, 12
"""Pixels: names at the left, bars, height of a row, of a title, and what is left free around all."""
LIKELIER, LESS_LIKELY, INK, QUIET, PAPER = (28, 104, 196), (204, 92, 0), (22, 25, 29), (86, 93, 104), (255, 255, 255)


def draw(record: Mapping[str, Any]) -> "numpy.ndarray":
    """[height, width, 3] bytes: a record's best and worst completions, a row of bars for each variant.

    All rows of a variant share one scale, which stands beside its name, and all rows one width a token.
    """
    import numpy
    from PIL import Image, ImageDraw, ImageFont

    rows = shown_completions(record["completions"])
    names = list(rows[0]["variants"]) if rows else []
    height = 2 * MARGIN + 2 * TITLE + len(rows) * (TITLE + ROW * len(names))
    image = Image.new("RGB", (2 * MARGIN + LABEL + WIDTH, height), PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    legend = "blue, up: pushed to be likelier; orange, down: to be less likely; every variant at its own scale"
    pen.text((MARGIN, MARGIN), one_line(f"iteration {record['iteration']}: {record['problem']}"), INK, font)
    pen.text((MARGIN, MARGIN + TITLE), legend, QUIET, font)
    top, longest = MARGIN + 2 * TITLE, max((len(row["texts"]) for row in rows), default=1)
    for row in rows:
        facts = f"reward {row['reward']}, advantage {row['advantage']}, {row['length']} tokens"
        pen.text((MARGIN, top + 6), facts, INK, font)
        top += TITLE
        for name in names:
            scale = max(_largest(each["variants"][name]["credit"]) for each in rows)
            own = " (this run)" if name == record["variant"] else ""
            pen.text((MARGIN, top + 2), f"{readable(name)} ±{scale:.3g}{own}", QUIET, font)
            _bars(pen, row["variants"][name]["credit"], len(row["texts"]), scale, top, min(18.0, WIDTH / longest))
            top += ROW
    return numpy.asarray(image)


def shown_completions(completions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best and the worst of those that took part in the update, in their order."""
    found = [each for each in completions if each["took_part"]]
    half = COMPLETIONS // 2
    return found if len(found) <= COMPLETIONS else [*found[:half], *found[-half:]]


def readable(variant: str) -> str:
    """A variant's name for people."""
    return "GRPO" if variant == "grpo" else variant.replace("_", " ")


def one_line(text: str, limit: int = 150) -> str:
    """Printable, on one line, not too long."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    return plain if len(plain) <= limit else f"{plain[:limit]} …"


def bins(values: Sequence[float | None], size: int) -> list[float]:
    """Of each ``size`` neighbours the value that is farthest from 0."""
    known = [value or 0.0 for value in values]
    return [max(known[first : first + size], key=abs) for first in range(0, len(known), size)]


def _largest(values: Numbers) -> float:
    return max((abs(value or 0.0) for value in values or []), default=0.0)


def _bars(pen: Any, values: Numbers, length: int, scale: float, top: int, cell: float) -> None:
    left, middle, half = MARGIN + LABEL, top + ROW // 2, ROW // 2 - 2
    pen.line([(left, middle), (left + cell * length, middle)], (213, 217, 224))
    if values is None:
        return
    size = max(1, int(1 / cell))
    for index, value in enumerate(bins(values, size)):
        reach = round(half * value / scale)
        if reach:
            start = left + index * size * cell
            box = [start, middle - max(reach, 0), start + max(0.0, size * cell - 1.5), middle - min(reach, 0)]
            pen.rectangle(box, LIKELIER if value > 0 else LESS_LIKELY)
