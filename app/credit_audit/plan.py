"""How large a credit audit is, and what it costs at most.

A completion is cut every few tokens into segments. The spacing is the same for all completions, and where a cut lies
does not depend on what the completion says after it: the audited policy gradient is unbiased for that reason alone
(:mod:`app.credit_audit.gradients`).
"""

import math
from dataclasses import dataclass

from app.errors import require


@dataclass(frozen=True)
class AuditPlan:
    """What is drawn in one audit.

    Attributes:
        problems: how many, on all ranks together.
        completions: G, sampled completions a problem: the group that advantages are relative to.
        cut_points: prefixes whose value is estimated, at most, in a completion, the empty one included.
        continuations: k, fresh completions of each prefix.

    Raises:
        ConfigurationError: a number too small to estimate anything from.
    """

    problems: int = 16
    completions: int = 8
    cut_points: int = 8
    continuations: int = 16

    def __post_init__(self) -> None:
        least = {
            "problems": (2, "must be at least 2 (intervals draw problems again)"),
            "completions": (2, "must be at least 2 (an advantage is relative to a group)"),
            "cut_points": (1, "must be at least 1"),
            "continuations": (2, "must be at least 2 (a standard error needs two)"),
        }
        for name, (bound, rule) in least.items():
            require(getattr(self, name) >= bound, rule, getattr(self, name), f"audit.{name}")

    def spacing(self, longest: int) -> int:
        """Tokens between two cuts, where the longest completion has ``longest`` tokens."""
        return math.ceil(longest / self.cut_points)

    @property
    def most_continuations(self) -> int:
        """Fresh continuations of an audit, at most."""
        return self.problems * self.completions * self.cut_points * self.continuations

    def most_tokens(self, max_new_tokens: int) -> int:
        """Generated tokens of an audit, at most: every completion is as long as it may be."""
        every = self.spacing(max_new_tokens)
        left = sum(max_new_tokens - cut for cut in cut_positions(max_new_tokens, every))
        return self.problems * self.completions * (max_new_tokens + self.continuations * left)

    def describe(self, max_new_tokens: int) -> str:
        """The cost in one line, before anything is drawn."""
        completions = self.problems * self.completions
        return (
            f"{completions:,} completions of {self.problems} problems, cut at up to {self.cut_points} points each, "
            f"and {self.continuations} continuations of each prefix: at most {self.most_continuations:,} "
            f"continuations and {self.most_tokens(max_new_tokens):,} tokens"
        )


def cut_positions(length: int, every: int) -> list[int]:
    """Where a completion of ``length`` tokens is cut: before tokens 0, ``every``, 2·``every`` …; never after its end,
    where the value is the reward."""
    return list(range(0, length, every))


def boundaries(length: int, every: int) -> list[tuple[int, int]]:
    """The segments [start, end) between neighbouring cuts, the end of the completion included."""
    starts = cut_positions(length, every)
    return list(zip(starts, [*starts[1:], length], strict=True))
