"""What a type annotation lets stand in a configuration."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union, however nested; another annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [each for option in typing.get_args(annotation) for each in alternatives(option)]
    return [annotation]


def elements(options: Sequence[Any], index: int) -> Iterator[Any]:
    """What the lists and tuples among ``options`` hold at ``index``."""
    for option in options:
        kinds = typing.get_args(option)
        if typing.get_origin(option) is list or (typing.get_origin(option) is tuple and kinds[-1] is Ellipsis):
            yield kinds[0]
        elif typing.get_origin(option) is tuple and index < len(kinds):
            yield kinds[index]


def is_configurable(option: type) -> bool:
    """Whether a value of this class is given by the keys of its constructor."""
    builtin = option.__module__ in ("builtins", "pathlib", "datetime", "types", "typing")  # Any is a class, too
    return dataclasses.is_dataclass(option) or not (builtin or issubclass(option, (str, Path)))


def is_misplaced_null(value: Any, options: Sequence[Any]) -> bool:
    """Whether ``value`` is null and none of ``options`` is, which the parser passes over.

    An option of the command line spells null as YAML does; where text is wanted, that is text.
    """
    if isinstance(value, str):
        value = None if str not in options and value.lower() in ("null", "~", "") else value
    return value is None and not _admit_null(options)


def _admit_null(options: Sequence[Any]) -> bool:
    """Whether null is among ``options``; an annotation that is for type checkers alone does not say."""
    literals = [each for option in options if typing.get_origin(option) is Literal for each in typing.get_args(option)]
    unsaid = any(option in (Any, object, inspect.Parameter.empty) or isinstance(option, str) for option in options)
    return unsaid or None in (*options, *literals) or type(None) in options
