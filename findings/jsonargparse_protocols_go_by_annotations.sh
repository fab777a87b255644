#!/usr/bin/env bash
# jsonargparse 4.53.0: a class that keeps a protocol is refused where its annotations are not the protocol's, word for word.
#
# An argument's type is a runtime-checkable typing.Protocol with one method, and a configuration names a class by
# class_path. One would guess that a class with that method will do, as it does for isinstance and for type checkers:
# without annotations, with a wider parameter, or with another name for a parameter that is given by position. jsonargparse
# compares names and annotations literally and refuses all three, with "does not implement protocol" and no word on why; a
# further parameter with a default is fine. Annotations that are spelt through an alias of the same type pass.
#
# Seen on 2026-11-29 (taken by jsonargparse, isinstance of the protocol):
#   Same           True True
#   Alias          True True
#   Extra          True True
#   Unannotated    False True
#   Wider          False True
#   Renamed        False True
#
# Exits with 0 while that is so, with 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jsonargparse[signatures]==4.53.0"

cat > "$folder/see.py" <<'PYTHON'
import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jsonargparse import ArgumentParser

Scores = list[float]


@runtime_checkable
class Score(Protocol):
    def score(self, samples: Sequence[str]) -> list[float]: ...


class Same:
    def score(self, samples: Sequence[str]) -> list[float]: ...


class Alias:
    def score(self, samples: Sequence[str]) -> Scores: ...


class Extra:
    def score(self, samples: Sequence[str], scale: float = 1.0) -> list[float]: ...


class Unannotated:
    def score(self, samples): ...


class Wider:
    def score(self, samples: Sequence[object]) -> list[float]: ...


class Renamed:
    def score(self, texts: Sequence[str]) -> list[float]: ...


def taken(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--function", type=Score)
    try:
        parser.parse_object({"function": {"class_path": f"__main__.{name}"}})
    except Exception as error:
        assert "does not implement protocol" in str(error), error
        return False
    return True


found = {kind.__name__: taken(kind.__name__) for kind in (Same, Alias, Extra, Unannotated, Wider, Renamed)}
for name, accepted in found.items():
    print(f"{name:14} {accepted} {isinstance(globals()[name](), Score)}")
sys.exit(0 if list(found.values()) == [True, True, True, False, False, False] else 1)
PYTHON

"$folder/venv/bin/python" "$folder/see.py" || { echo "the behaviour has changed"; exit 1; }
