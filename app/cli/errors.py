"""One line for whatever is wrong with a configuration: the key, the file it stands in, the nearest valid key.

The parser knows a failing key by its last part only; :func:`check_keys` walks the files beside the classes'
signatures before it, so that a misspelt key or class is named whole.
"""

import importlib
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from app.cli.annotations import alternatives, elements, is_configurable, is_misplaced_null
from app.cli.moved import moved
from app.cli.values import value_problems
from app.errors import ConfigurationError, causes, closest

PROTOCOL_HINT = (
    "; each of its methods needs the parameters of the protocol's, with the same names and type annotations, and the "
    "same annotation of what it returns"
)
"""The parser compares them literally, and says no more than that they differ."""
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
NULL = "needs a value, and null is none: give one, or leave the key out for its default"


@dataclass(frozen=True)
class Source:
    """A configuration file, or the options of the command line, as nested mappings."""

    name: str
    values: dict[str, Any]

    def holds(self, path: Sequence[str]) -> bool:
        """Whether this source sets the key at ``path``, written with or without ``init_args``."""
        return _lookup(self.values, list(path)) is not None


def read_sources(arguments: Sequence[str]) -> list[Source]:
    """The configuration files named in ``arguments`` in order, then the options themselves.

    Raises:
        ConfigurationError: a file that is missing, is not YAML or holds no mapping.
    """
    files = [value for key, value in _options(arguments) if key in ("--config", "-c")]
    options: dict[str, Any] = {}
    for key, value in _options(arguments):
        if key.startswith("--") and key != "--config" and not key.endswith(("help", "print_config")):
            _set(options, key[2:].rstrip("+").split("."), _structured(value))
    return [*(Source(str(path), _read_yaml(Path(path))) for path in files), Source("command line", options)]


def check_keys(sources: Sequence[Source], top_level: Mapping[str, Any]) -> None:
    """Refuses the first key or class of ``sources`` that does not exist, or value that can be seen not to work.

    Args:
        sources: see :func:`read_sources`.
        top_level: the type of each top-level key.

    Raises:
        ConfigurationError: naming key, source and nearest valid name.
    """
    merged: dict[str, Any] = {}
    for source in sources:
        merged = _merge(merged, source.values)
    for path, problem in (*_problems(merged, top_level, []), *value_problems(merged)):
        raise ConfigurationError(f"{problem}{_where(path, sources)}", key=".".join(path))


def explain(error: ConfigurationError, sources: Sequence[Source]) -> str:
    """One line on ``error``, with the source of the key that it blames where that can be told."""
    message = " ".join(str(error).split())
    if error.key is not None and "(in " not in message:
        path = _completed(error.key.split("."), sources, message)
        return f"{'.'.join(path)}{message.removeprefix(error.key)}{_where(path, sources)}"
    parsed = re.match(r'Parser key "([\w.]+)": (.*)', message)
    if parsed is None:
        return message
    path = _path_of(parsed[1].split("."), sources)
    reasons = re.findall(r"Errors: - (.*?) - Expected a <class 'NoneType'>", parsed[2])
    text = re.sub(r"a <class '([\w.]+)'>", r"\1", reasons[0] if reasons else parsed[2]).replace("a typing.", "")
    hint = PROTOCOL_HINT if "does not implement protocol" in text else ""
    return f"{'.'.join(path)}: {text}{hint}{_where(path, sources)}"


def configuration_error(error: BaseException) -> ConfigurationError | None:
    """The innermost configuration error behind ``error`` (the parser wraps those that constructors raise)."""
    from omegaconf.errors import OmegaConfBaseException

    found = None
    for cause in causes(error):
        if isinstance(cause, ConfigurationError):
            found = cause
        elif isinstance(cause, OmegaConfBaseException) and found is None:
            reason = str(cause.msg or cause).splitlines()[0]
            hint = "; write the level init_args out, here and in the reference"
            found = ConfigurationError(reason + hint, key=_plain_key(cause.full_key))
    return found


def _plain_key(full_key: str | None) -> str | None:
    """OmegaConf's name of a key, without the subcommand and the levels of ``init_args``."""
    return ".".join(part for part in (full_key or "").split(".")[1:] if part != "init_args") or None


# ── what stands in the configuration ──


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(option, value) for ``--key value`` and ``--key=value``."""
    words = list(arguments)
    for index, word in enumerate(words):
        if word.startswith("-") and "=" in word:
            yield tuple(word.split("=", 1))  # type: ignore[misc]
        elif word.startswith("-"):
            yield word, words[index + 1] if index + 1 < len(words) else True  # a switch, such as --dry_run


def _structured(value: Any) -> Any:
    """The mapping or list that an option spells; any other value as it was typed."""
    try:
        read = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value
    return read if isinstance(read, dict | list) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        present = [str(other) for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigurationError(f"there is no file {path}{nearest(str(path), present)}", key="--config")
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _OneOfEachKey)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "is not YAML"
        what = "cannot be read" if isinstance(error, yaml.constructor.ConstructorError) else what
        raise ConfigurationError(f"{what}: {' '.join(str(error).split())}", key=str(path)) from error
    if not isinstance(values, dict):
        raise ConfigurationError("holds no keys: a configuration is a mapping of keys to values", key=str(path))
    return values


class _OneOfEachKey(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would pass over the first with all that is below it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines and isinstance(key, yaml.ScalarNode):
                message = f"the key {key.value} stands twice, in lines {lines[key.value]} and {line}: keep one"
                raise yaml.constructor.ConstructorError(None, None, message)
            lines[str(key.value)] = line
        return super().construct_mapping(node, deep)


def _set(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        child = values.get(key)
        values[key] = values = child if isinstance(child, dict) else {}
    values[path[-1]] = value


def _plain(values: Any) -> Any:
    """A mapping with the level of ``init_args`` taken out, as a user may leave it out."""
    if isinstance(values, Mapping) and "init_args" in values and isinstance(values["init_args"], Mapping):
        rest = {key: value for key, value in values.items() if key != "init_args"}
        return {**rest, **values["init_args"]}
    return values


def _merge(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    old, new = _plain(old), _plain(new)
    if "class_path" in new and new["class_path"] != old.get("class_path"):
        return new
    return {**old, **{key: _merge(old[key], value) if key in old else value for key, value in new.items()}}


def _lookup(values: Any, path: list[str]) -> Any:
    for key in path:
        values = _plain(values)
        if isinstance(values, Mapping) and key in values:
            values = values[key]
        elif isinstance(values, list) and key.isdigit() and int(key) < len(values):
            values = values[int(key)]
        elif key not in CLASS_KEYS:
            return None
    return True if values is None else values


def _where(path: Sequence[str], sources: Sequence[Source]) -> str:
    """`` (in FILE)``: the last source that sets the key, as the parser lets it win."""
    holding = [source.name for source in sources if source.holds(path)]
    return f" (in {holding[-1]})" if holding else ""


def _path_of(ending: list[str], sources: Sequence[Source], message: str = "") -> list[str]:
    """The first key of the sources that ends like ``ending`` and whose value ``message`` quotes; where there is none,
    the first that ends like it, or ``ending`` itself."""
    found = [
        (path, _lookup(source.values, path))
        for source in reversed(sources)
        for path in _paths(source.values)
        if path[-len(ending) :] == ending
    ]
    quoted = [path for path, value in found if isinstance(value, str) and value and value in message]
    return (quoted or [path for path, _ in found] or [ending])[0]


def _completed(key: list[str], sources: Sequence[Source], message: str) -> list[str]:
    """The whole path of a key that its setting knows by the end of its name, such as ``objective.lam``."""
    for known in range(len(key), 0, -1):
        path = _path_of(key[:known], sources, message)
        if any(source.holds(path) for source in sources):
            return path + key[known:]
    return key


def _paths(values: Any) -> Iterator[list[str]]:
    values = _plain(values)
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        yield [str(key)]
        yield from ([str(key), *path] for path in _paths(value))


# ── what may stand there ──


def nearest(name: str, known: Sequence[str]) -> str:
    """``; did you mean X?`` where something valid is near, else the list of what is valid."""
    near = closest(name, known)
    if near:
        return f"; did you mean {near}?"
    return f"; there are {', '.join(sorted(known))}" if known else ""


def _problems(values: Any, known: Mapping[str, Any], path: list[str]) -> Iterator[tuple[list[str], str]]:
    """(path, what is wrong) for each key of ``values`` that is not in ``known``, and so on below."""
    for key, value in values.items():
        if key not in known:
            now = moved([*path, str(key)])
            yield [*path, str(key)], f"is now {now}" if now else f"no such key{nearest(str(key), list(known))}"
        else:
            yield from _below(_plain(value), known[key], [*path, str(key)])


def _below(value: Any, annotation: Any, path: list[str]) -> Iterator[tuple[list[str], str]]:
    options = alternatives(annotation)
    if is_misplaced_null(value, options):
        yield path, NULL
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            for element in elements(options, index):
                yield from _below(_plain(item), element, [*path, str(index)])
    bases = [option for option in options if inspect.isclass(option) and is_configurable(option)]
    if bases and str not in options and _may_be_class(value):
        value = {"class_path": value}
    if not isinstance(value, Mapping):
        return
    for option in options:
        if typing.get_origin(option) is dict and len(typing.get_args(option)) == 2:
            for key, item in value.items():
                yield from _below(_plain(item), typing.get_args(option)[1], [*path, str(key)])
    if bases:
        yield from _class_problems(value, bases, path)


def _class_problems(
    value: Mapping[str, Any], bases: Sequence[type], path: list[str]
) -> Iterator[tuple[list[str], str]]:
    chosen: Any = bases[0]
    for key in ("class_path", "init_args"):
        if value.get(key, "") is None:
            yield [*path, key], NULL
            return
    if "class_path" in value:
        chosen = _find_class(str(value["class_path"]), bases)
        if chosen is None:
            name = str(value["class_path"])
            yield [*path, "class_path"], f"no class {name}{_nearest_class(name, bases)}"
            return
    elif inspect.isabstract(chosen):  # an overlay's part of a class that another file names; the parser knows it
        return
    arguments = {key: item for key, item in value.items() if key not in CLASS_KEYS}
    yield from _problems(arguments, parameters(chosen), path)


def _may_be_class(value: Any) -> bool:
    """Whether a value that stands where a class belongs names one: the parser takes null, YAML and files there, too."""
    named = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.]*", value)
    return bool(named) and isinstance(yaml.safe_load(value), str) and not Path(value).exists()


def _find_class(name: str, bases: Sequence[type]) -> type | None:
    """A class by import path, or by its bare name among the subclasses of ``bases``."""
    if "." not in name:
        return next((each for base in bases for each in _subclasses(base) if each.__name__ == name), None)
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None


def _subclasses(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return [base, *(each for child in children for each in _subclasses(child))]


def _nearest_class(name: str, bases: Sequence[type]) -> str:
    """:func:`nearest` among the classes that can be named by their bare names."""
    offered = [each.__name__ for base in bases for each in _subclasses(base) if _is_offered(each)]
    known = {name.lower(): name for name in offered}
    near = closest(name.rsplit(".", 1)[-1].lower(), known, cutoff=0.55)
    return f"; did you mean {known[near]}?" if near else nearest(name, offered)


def _is_offered(found: type) -> bool:
    protocol = getattr(found, "_is_protocol", False)
    return not (protocol or inspect.isabstract(found) or found.__name__.startswith("_"))


def parameters(of: Any) -> dict[str, Any]:
    """Name → annotation of what a class (or function) takes, those handed on to its bases included."""
    try:
        hints = typing.get_type_hints(of.__init__ if inspect.isclass(of) else of)
    except NameError:  # an annotation that is imported for type checkers only
        hints = {}
    own = inspect.signature(of).parameters.values()
    found = {each.name: hints.get(each.name, each.annotation) for each in own if each.kind != each.VAR_KEYWORD}
    if inspect.isclass(of) and any(each.kind == each.VAR_KEYWORD for each in own):
        for base in of.__mro__[1:-1]:
            found = parameters(base) | found
    return found
