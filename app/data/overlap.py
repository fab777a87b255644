"""How much of a benchmark stands in a training set: a score on such problems measures memory."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from app.data.problems import Problem

GRAM = 13
"""Words in a row that two problems must share, the field's usual number."""


@dataclass
class BenchmarkOverlap:
    """What a training set and one benchmark share.

    Attributes:
        problems: of the benchmark.
        exact: ids of the benchmark's problems with the same letters and digits as a training problem.
        gram: ids of those that share 13 words in a row with a training problem.
        training_exact: ids of the training problems behind ``exact``.
        training_gram: ids of the training problems behind ``gram``.
    """

    problems: int
    exact: set[str] = field(default_factory=set)
    gram: set[str] = field(default_factory=set)
    training_exact: set[str] = field(default_factory=set)
    training_gram: set[str] = field(default_factory=set)


class BenchmarkIndex:
    """The benchmarks' problems, ready to be looked up.

    Args:
        benchmarks: name → problems.
    """

    def __init__(self, benchmarks: Mapping[str, Sequence[Problem]]) -> None:
        self._sizes = {name: len(problems) for name, problems in benchmarks.items()}
        self._exact: dict[str, set[tuple[str, str]]] = {}
        self._grams: dict[tuple[str, ...], set[tuple[str, str]]] = {}
        for name, problems in benchmarks.items():
            for problem in problems:
                self._exact.setdefault(letters_and_digits(problem.problem), set()).add((name, problem.id))
                for gram in word_grams(problem.problem):
                    self._grams.setdefault(gram, set()).add((name, problem.id))

    def exact_matches(self, text: str) -> set[tuple[str, str]]:
        """(benchmark, problem id) of the problems with the same letters and digits."""
        letters = letters_and_digits(text)
        return self._exact.get(letters, set()) if letters else set()

    def gram_matches(self, text: str) -> set[tuple[str, str]]:
        """(benchmark, problem id) of the problems that share 13 words in a row."""
        return set().union(*(self._grams.get(gram, set()) for gram in word_grams(text)))

    def overlaps(self, problem: Problem) -> bool:
        """Whether a training problem matches a benchmark's one in either way."""
        return bool(self.exact_matches(problem.problem)) or bool(self.gram_matches(problem.problem))

    def report(self, training: Iterable[Problem]) -> dict[str, BenchmarkOverlap]:
        """Benchmark → what it shares with the training set."""
        found = {name: BenchmarkOverlap(size) for name, size in self._sizes.items()}
        for problem in training:
            for name, identifier in self.exact_matches(problem.problem):
                found[name].exact.add(identifier)
                found[name].training_exact.add(problem.id)
            for name, identifier in self.gram_matches(problem.problem):
                found[name].gram.add(identifier)
                found[name].training_gram.add(problem.id)
        return found


def letters_and_digits(text: str) -> str:
    """The text in lower case without anything but letters and digits."""
    return "".join(character for character in text.casefold() if character.isalnum())


def word_grams(text: str) -> set[tuple[str, ...]]:
    """All runs of 13 words (letters or digits) of the text; none for a shorter one."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return {tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)}


def overlap_table(report: Mapping[str, BenchmarkOverlap]) -> str:
    """The report as a table for a terminal."""
    lines = [f"{'benchmark':<16}{'problems':>9}{'exact':>7}{'13-gram':>9}{'training rows':>15}"]
    for name, found in report.items():
        rows = len(found.training_exact | found.training_gram)
        lines.append(f"{name:<16}{found.problems:>9}{len(found.exact):>7}{len(found.gram):>9}{rows:>15}")
    return "\n".join(lines)
