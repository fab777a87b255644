"""What a report compares, as a plan file (YAML) says it before anything runs.

``configs/report/plans/full.yaml`` is an example; docs/comparing.md explains it.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.cli.errors import read_sources
from app.errors import ConfigurationError, closest, require, require_choice

Options = dict[str, Any]
GROUPS = ("main", "control")
PROCESSES = ("shared", "own")


@dataclass(frozen=True)
class Task:
    """What is learned, and what it starts from.

    Attributes:
        fit: configuration files of the RL stage, as ``main.py fit`` stacks them.
        options: key → value over these files.
        warm_start: configuration files of a supervised stage, which is run with one seed for each warm start.
        warm_start_options: key → value over these files.
        policies: instead, paths of ready policies, one for each warm start.
    """

    fit: list[str]
    options: Options = field(default_factory=dict)
    warm_start: list[str] = field(default_factory=list)
    warm_start_options: Options = field(default_factory=dict)
    policies: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Method:
    """One setting that is compared.

    Attributes:
        options: key → value over the task's configuration.
        against: the method it is compared with, seed by seed; null for one that others are compared with.
        rate_of: takes the learning rate of this method's sweep; null sweeps for itself.
        group: "main", or "control", whose runs come last. Holm's correction is over a group.
        seeds: runs from each warm start, where fewer than the plan's are wanted.
    """

    options: Options
    against: str | None = None
    rate_of: str | None = None
    group: str = "main"
    seeds: int | None = None


@dataclass(frozen=True)
class Sweep:
    """How each method's learning rate is chosen: on the first warm start, with seeds that no comparison uses, by the
    largest mean area under the train reward.

    Attributes:
        rates: tried for each method on each task.
        seeds: runs of each rate.
        key: of the learning rate.
    """

    rates: list[float]
    seeds: int = 2
    key: str = "model.optimizer.lr"


@dataclass(frozen=True)
class Measures:
    """What is read from the curves.

    Attributes:
        reward: curve of the train reward.
        heldout: curve of the held-out accuracy; its first, middle and last point are read.
        tokens: curve of the tokens that were generated so far.
        last: iterations at the end, whose mean reward is a measure.
        accuracy: the train reward whose reaching is timed, in iterations and tokens.
        window: iterations over which the reward is averaged before it is held against ``accuracy``.
    """

    accuracy: float
    reward: str = "reward"
    heldout: str = "eval/heldout/accuracy"
    tokens: str = "speed/tokens/total"
    last: int = 10
    window: int = 5


@dataclass(frozen=True)
class Plan:
    """The whole comparison.

    Attributes:
        tasks: by name.
        methods: by name.
        measures: see :class:`Measures`.
        sweep: see :class:`Sweep`; null leaves the learning rates as they are.
        warm_starts: of each task.
        seeds: runs of each method from each warm start. No two warm starts share a seed.
        process: "shared" has a worker run one after the other, which spares the imports; "own" starts
            ``python main.py fit`` for each, which runs of several ranks and vLLM need.
        resamples: of the bootstrap.
    """

    tasks: dict[str, Task]
    methods: dict[str, Method]
    measures: Measures
    sweep: Sweep | None = None
    warm_starts: int = 4
    seeds: int = 4
    process: str = "shared"
    resamples: int = 10_000

    def __post_init__(self) -> None:
        for name in ("warm_starts", "seeds"):
            require(getattr(self, name) >= 1, "must be at least 1", getattr(self, name), name)
        require(self.resamples >= 1000, "must be at least 1000", self.resamples, "resamples")
        require_choice(self.process, PROCESSES, "process")
        require(bool(self.tasks), "needs at least one task", "none", "tasks")
        for name, task in self.tasks.items():
            self._check_task(name, task)
        for name, method in self.methods.items():
            self._check_method(name, method)
        if self.sweep is not None:
            require(bool(self.sweep.rates), "needs at least one rate", "none", "sweep.rates")
            require(self.sweep.seeds >= 1, "must be at least 1", self.sweep.seeds, "sweep.seeds")
        for name in ("last", "window"):
            require(getattr(self.measures, name) >= 1, "must be at least 1", name, f"measures.{name}")

    def _check_task(self, name: str, task: Task) -> None:
        place = f"tasks.{name}"
        require(bool(task.fit), "needs the configuration files of the RL stage", task.fit, f"{place}.fit")
        if bool(task.warm_start) == bool(task.policies):
            raise ConfigurationError("give either warm_start (files) or policies (paths)", key=place)
        if task.policies:
            rule = f"needs one path for each of the {self.warm_starts} warm starts"
            require(len(task.policies) == self.warm_starts, rule, len(task.policies), f"{place}.policies")
        for file in (*task.fit, *task.warm_start):
            if not Path(file).is_file():
                raise ConfigurationError(f"there is no file {file}", key=place)

    def _check_method(self, name: str, method: Method) -> None:
        place = f"methods.{name}"
        require_choice(method.group, GROUPS, f"{place}.group")
        for key in ("against", "rate_of"):
            other = getattr(method, key)
            if other is not None:
                require_choice(other, self.methods, f"{place}.{key}")
                require(other != name, "must be another method", other, f"{place}.{key}")
        if method.rate_of is not None and self.methods[method.rate_of].rate_of is not None:
            raise ConfigurationError(f"{method.rate_of} has no sweep of its own", key=f"{place}.rate_of")
        within = method.seeds is None or 1 <= method.seeds <= self.seeds
        require(within, f"must lie between 1 and the plan's {self.seeds}", method.seeds, f"{place}.seeds")

    def seeds_of(self, method: str) -> int:
        """Runs of a method from each warm start."""
        return self.methods[method].seeds or self.seeds

    def sweeper_of(self, method: str) -> str:
        """The method whose sweep gives ``method`` its learning rate."""
        return self.methods[method].rate_of or method

    def group(self, name: str) -> list[str]:
        """The methods of a group that are compared with another one."""
        return [key for key, method in self.methods.items() if method.group == name and method.against]


def read_plan(path: Path) -> Plan:
    """The plan in a YAML file.

    Raises:
        ConfigurationError: in one line, with the key: a file that cannot be read, an unknown key, a value of the wrong
            kind or out of range.
    """
    values = read_sources(["--config", str(path)])[0].values
    try:
        return typing.cast(Plan, _built(Plan, values, ""))
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} (in {path})") from error


def _built(kind: Any, value: Any, place: str) -> Any:
    """``value`` as an annotation of the classes above wants it."""
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind), value, place)
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _built(next(each for each in inside if each is not type(None)), value, place)
    if origin is dict:
        _require_kind(value, Mapping, "a mapping of keys to values", place)
        return {str(key): _built(inside[1], each, f"{place}.{key}") for key, each in value.items()}
    if origin is list:
        _require_kind(value, list, "a list", place)
        return [_built(inside[0], each, f"{place}.{index}") for index, each in enumerate(value)]
    return _scalar(kind, value, place)


def _dataclass(kind: type, value: Any, place: str) -> Any:
    _require_kind(value, Mapping, "a mapping of keys to values", place)
    annotations = typing.get_type_hints(kind)
    for key in value:
        if key not in annotations:
            near = closest(str(key), annotations)
            hint = f"; did you mean {near}?" if near else f"; there are {', '.join(annotations)}"
            raise ConfigurationError(f"no such key{hint}", key=f"{place}.{key}".lstrip("."))
    for each in dataclasses.fields(kind):
        given = each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING
        if each.name not in value and not given:
            raise ConfigurationError("is missing", key=f"{place}.{each.name}".lstrip("."))
    return kind(**{key: _built(annotations[key], each, f"{place}.{key}".lstrip(".")) for key, each in value.items()})


def _scalar(kind: Any, value: Any, place: str) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            value = float(value)
        except ValueError as error:
            raise ConfigurationError(f"must be a number, got {value}", key=place) from error
    fits = (int, float) if kind is float else kind
    names = {int: "a whole number", float: "a number", str: "text"}
    _require_kind(value, fits, names[kind], place)
    if isinstance(value, bool):
        raise ConfigurationError(f"must be {names[kind]}, got {value}", key=place)
    return kind(value)


def _require_kind(value: Any, kind: Any, name: str, place: str) -> None:
    require(isinstance(value, kind), f"must be {name}", value, place or "the plan")
