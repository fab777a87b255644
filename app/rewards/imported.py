"""A reward function of the user's own, by import path."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import cast

from app.errors import ConfigurationError, closest
from app.rewards.reward import RewardFunction, RewardSample, Scores


class ImportedReward(RewardFunction):
    """A function of the user's own, by import path.

    Its signature is ``function(samples: Sequence[RewardSample]) -> Sequence[float | None]``: one score a sample, in
    order, None where it cannot score. Arrays and tensors of one dimension will do. It is called without gradients.

    Args:
        path: ``package.module:function``.
        name: of its metrics; by default the function's name.
    """

    def __init__(self, path: str, name: str | None = None) -> None:
        self.function = _import_function(path)
        self.path = path
        self.name = name or path.partition(":")[2]

    def __call__(self, samples: Sequence[RewardSample]) -> Scores:
        return cast("Scores", self.function(samples))  # app.rewards.checked looks at it


def _import_function(path: str) -> Callable[[Sequence[RewardSample]], Sequence[float | None]]:
    module_name, _, name = path.partition(":")
    if not module_name or not name.isidentifier():
        raise ConfigurationError(f"must have the form package.module:function, got {path!r}", key="path")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(f"cannot import {module_name!r} of {path!r}: {error}", key="path") from error
    function = getattr(module, name, None)
    if function is None:
        near = closest(name, dir(module))
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigurationError(f"{module_name!r} has no {name!r}{hint}", key="path")
    if not callable(function):
        raise ConfigurationError(f"{path!r} is a {type(function).__name__}, not a function", key="path")
    try:
        inspect.signature(function).bind([])
    except TypeError as error:
        raise ConfigurationError(f"{path!r} must take one argument, the samples: {error}", key="path") from error
    return function
