"""Grading: a verdict for every (gold answer, completion). docs/grading.md states what counts as equal."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, Literal

from app.errors import ConfigurationError
from app.grading.answers import extract_answer
from app.grading.pool.workers import WorkerPool

Reason = Literal["match", "mismatch", "no_answer", "timeout", "too_long", "unparseable_gold"]
REASONS: tuple[Reason, ...] = ("match", "mismatch", "no_answer", "timeout", "too_long", "unparseable_gold")
Item = tuple[str, str] | tuple[str, str, Mapping[str, Any]]

#: Longer answers are wrong without a look: the longest gold answers of the field's benchmarks have 200 characters.
MAX_ANSWER_CHARS = 2000
_EXTRA_KEYS = ("error", "unit", "is_multiple_answer")
_PLAIN_NUMBER = re.compile(r"[-+]?\d{1,40}(?:\.\d{1,40})?")
_CACHE_SIZE = 50_000
_CACHED_CHARS = 300
_LONGEST_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Verdict:
    """What the grader says of one completion.

    Attributes:
        correct: whether it earns the reward; true for the reason "match" alone.
        reason: ``match``; ``mismatch``; ``no_answer`` (no box outside thinking); ``timeout`` (the limit of time or
            memory); ``too_long`` (over ``MAX_ANSWER_CHARS``); ``unparseable_gold`` (the gold answer cannot be read).
        extracted: what the last box holds; None where there is none.
    """

    correct: bool
    reason: Reason
    extracted: str | None


@dataclass(frozen=True)
class _Task:
    gold: str
    answer: str | None
    extra: tuple[tuple[str, Any], ...] = ()
    symmetric: bool = False

    def request(self) -> dict[str, Any]:
        return {"gold": self.gold, "answer": self.answer, "extra": dict(self.extra), "symmetric": self.symmetric}


class Grader:
    """Grades completions in killable worker processes, which start when the first answer needs them.

    Usable from any thread, as a context manager, and after :meth:`close` again.

    Args:
        workers: grading processes.
        timeout_s: wall limit of one verdict, in seconds; at most 3.
        memory_mb: address space of one worker, in MiB.
    """

    def __init__(self, workers: int = 2, timeout_s: float = 1.5, memory_mb: int = 1024) -> None:
        if workers < 1:
            raise ConfigurationError(f"must be at least 1, got {workers}", key="workers")
        if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
            raise ConfigurationError(
                f"must be above 0 and at most {_LONGEST_TIMEOUT_S:g}, got {timeout_s}", "timeout_s"
            )
        if memory_mb < 512:
            raise ConfigurationError(f"must be at least 512, got {memory_mb}", key="memory_mb")
        self._pool = WorkerPool(workers, timeout_s, memory_mb)
        self._known: OrderedDict[_Task, str] = OrderedDict()
        self._foreseen: dict[_Task, Future[str]] = {}

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        """A verdict for every item, in order.

        Args:
            items: (gold answer, completion) or (gold answer, completion, row), where the row's ``error`` (absolute
                tolerance), ``unit`` and ``is_multiple_answer`` are taken into account.
        """
        tasks = _tasks(items)
        return [_verdict(task, judged) for task, judged in zip(tasks, self._judge(tasks), strict=True)]

    def foresee(self, items: Sequence[Item]) -> None:
        """Has the workers begin with ``items``, which :meth:`grade` will be asked of later; does not wait for them."""
        for task in dict.fromkeys(_tasks(items)):
            if task not in self._known and task not in self._foreseen and _at_once(task) is None:
                self._foreseen[task] = self._pool.submit(task.request())

    def equivalent(self, pairs: Iterable[tuple[str, str]]) -> list[bool]:
        """Whether the two answers of each pair are equal, whichever of them is taken for the gold answer."""
        tasks = [_Task(a, b, symmetric=True) for a, b in pairs]
        return [
            task.gold == task.answer or judged == "match"
            for task, judged in zip(tasks, self._judge(tasks), strict=True)
        ]

    def unparseable_golds(self, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[int]:
        """The positions of the (gold answer, row) that no answer but a literal repetition could match."""
        tasks = [_Task(gold, None, _relevant(extra)) for gold, extra in rows]
        return [i for i, judged in enumerate(self._judge(tasks)) if judged in ("unparseable_gold", "limit")]

    @property
    def restarts(self) -> int:
        """How many worker processes were killed or lost."""
        return self._pool.restarts

    def _judge(self, tasks: Sequence[_Task]) -> list[str]:
        """Judgements of equal tasks are made once; plain numbers are compared here, the rest in the workers."""
        judged: dict[_Task, str] = {}
        for task in tasks:
            known = self._known.get(task) or _at_once(task)
            if known is not None:
                judged[task] = known
        open_tasks = [task for task in dict.fromkeys(tasks) if task not in judged]
        foreseen = {task: self._foreseen.pop(task) for task in open_tasks if task in self._foreseen}
        new_tasks = [task for task in open_tasks if task not in foreseen]
        answers = self._pool.judge_all([task.request() for task in new_tasks])
        judged |= dict(zip(new_tasks, answers, strict=True))
        judged |= {task: future.result() for task, future in foreseen.items()}
        for task in open_tasks:
            self._remember(task, judged[task])
        return [judged[task] for task in tasks]

    def _remember(self, task: _Task, judgement: str) -> None:
        if judgement == "limit" or len(task.gold) + len(task.answer or "") > _CACHED_CHARS:
            return
        self._known[task] = judgement
        while len(self._known) > _CACHE_SIZE:
            self._known.popitem(last=False)

    def close(self) -> None:
        """Ends the worker processes; safe to call again."""
        self._foreseen.clear()
        self._pool.close()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _tasks(items: Sequence[Item]) -> list[_Task]:
    return [
        _Task(gold, extract_answer(completion), _relevant(extra[0] if extra else {}))
        for gold, completion, *extra in items
    ]


def _relevant(extra: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The columns that change what is correct, as strings and booleans."""
    known = [(key, extra[key]) for key in _EXTRA_KEYS if extra.get(key)]
    return tuple((key, value if isinstance(value, bool) else str(value)[:100]) for key, value in known)


def _at_once(task: _Task) -> str | None:
    """The judgement where two plain numbers or a length settle it; None where a worker must judge."""
    if len(task.gold) > MAX_ANSWER_CHARS:
        return "unparseable_gold"
    if task.answer is not None and len(task.answer) > MAX_ANSWER_CHARS:
        return "too_long"
    gold = _plain_number(task.gold)
    if gold is None or task.extra:
        return None
    if task.answer is None:
        return "mismatch"
    answer = _plain_number(task.answer)
    if answer is None or (gold != answer and "." in task.gold + task.answer):
        return None
    return "match" if gold == answer else "mismatch"


def _plain_number(text: str) -> Fraction | None:
    text = text.strip()
    return Fraction(text) if text.isascii() and _PLAIN_NUMBER.fullmatch(text) else None


def _verdict(task: _Task, judged: str) -> Verdict:
    if judged == "limit":
        return Verdict(False, "timeout", task.answer)
    if task.answer is None and judged != "unparseable_gold":
        return Verdict(False, "no_answer", None)
    reason = next(each for each in REASONS if each == judged)
    return Verdict(reason == "match", reason, task.answer)
