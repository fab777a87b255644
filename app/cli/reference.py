"""The reference of all configuration keys, as ``python -m app.cli.reference > docs/configuration.md`` writes it.

Types and defaults are read from the signatures that the command line itself parses, meanings from their docstrings, so
that a key is described in one place, beside its code.
"""

import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import docstring_parser
from lightning.pytorch import Trainer

from app.cli.errors import parameters
from app.cli.runner import BY_BARE_NAME, CALLBACKS, SEEDED, TRAINER_DEFAULTS
from app.cli.trainer_keys import TRAINER_KEYS
from app.cli.values import ELSEWHERE
from datamodules.base import ProblemDataModule
from modules.policy_module import PolicyModule

INTRODUCTION = """\
# Every key of the configuration

This page is written by a program: `python -m app.cli.reference > docs/configuration.md` reads the types and defaults
from the code and the meanings from its docstrings, and a test compares the page with the code. How files are stacked,
how classes are named, and an example to start from stand in [running.md](running.md). What costly keys cost in
time and memory stands in [costs.md](costs.md).

A dotted name such as `model.objective.lam` is a level of the file for each dot, or an option of the command line:
`--model.objective.lam 0.98`. Where a class is chosen, its name stands in `class_path` and its keys in `init_args`; in
dotted names `init_args` may be left out. Everything that is not given has the default of this page.
"""

TOP_LEVEL: dict[str, tuple[str, str, str]] = {
    "seed_everything": (
        "whole number from 0 to 2³² − 1",
        "`0`",
        "The seed of weights, order of problems and sampling.",
    ),
    "name": (
        "text",
        "`run`",
        "The folder of the run, below `trainer.default_root_dir`; each new run is a `version_<n>` in it.",
    ),
    "ckpt_path": (
        "text or null",
        "`null`",
        "`fit`: the checkpoint to go on from. `validate`: the checkpoint whose weights are evaluated. `last`: the "
        "newest intact one of this `name`; `fit` begins where there is none.",
    ),
    "dry_run": (
        "true or false",
        "`false`",
        "Prints batches and memory, or what an evaluation draws and asks, without loading a weight, and stops.",
    ),
}
"""Key → type, default and meaning, of what no class of ours describes."""

PARTS: dict[str, tuple[str, Any]] = {
    "model": ("What is trained and by which objective.", PolicyModule),
    "data": ("The problems to learn from, and the benchmarks.", ProblemDataModule),
    **{
        key: (meaning, CALLBACKS[key])
        for key, meaning in {
            "rollouts": "How completions are made and rewarded: needed by GRPO-λ, refused in the supervised stage.",
            "evaluation": "Benchmarks beside training and under `validate`; null leaves them out.",
            "audit": "The credit audit (docs/audit.md), beside training and under `validate`; null leaves it out.",
            "traces": "Diagnostics of the eligibility traces; null leaves them out.",
            "dashboard": "What is laid out and drawn for a run; null is its defaults.",
            "completions": "A table of sample completions; null leaves it out.",
            "credit": "The credit of tokens as a page and as pictures ([credit.md](credit.md)); null leaves them out.",
            "alarms": "What to say when a run collapses, and when to stop it; null has the default of each key.",
            "checkpoint": "Checkpoints to resume from; null saves none.",
            "export": "The policy as a Hugging Face folder; null exports none.",
        }.items()
    },
    "trainer": ("Lightning's trainer: devices, strategy, precision.", None),
}

COSTLY = {
    "model.policy": ("gradient_checkpointing", "lora"),
    "model.objective": ("application", "beta", "entropy_bonus", "top_entropy_share"),
    "model.updates": ("per_rollout", "mini_batches"),
    "model.optimizer": ("name",),
    "model": ("micro_batch_size", "micro_batch_tokens", "policy_offload", "reference_offload"),
    "rollouts.mismatch": ("correction",),
    "rollouts.schedule": ("every_n_iterations", "generate_ahead"),
    "rollouts": ("dynamic_sampling", "engine"),
    "rollouts.engine": ("verify_weights",),
}
"""The keys below each name whose cost stands in ``docs/costs.md``."""
COST = " ([cost](costs.md#the-switches))"


@dataclass(frozen=True)
class Key:
    """One line of a table."""

    name: str
    annotation: Any
    default: Any
    meaning: str


def reference() -> str:
    """The whole page as Markdown."""
    tables = _Tables()
    sections = [INTRODUCTION, _top_level()]
    for part, (meaning, base) in PARTS.items():
        sections.append(f"## {part}\n\n{meaning}")
        sections += [_trainer()] if base is None else tables.below(part, base)
    return "\n\n".join(section.strip() for section in sections) + "\n"


def keys_of(cls: type) -> list[Key]:
    """What a class takes from a configuration, in the order of its signature."""
    defaults, meanings = _defaults(cls), _meanings(cls)
    return [
        Key(name, annotation, defaults.get(name, inspect.Parameter.empty), meanings.get(name, ""))
        for name, annotation in parameters(cls).items()
    ]


def _defaults(cls: type) -> dict[str, Any]:
    found = {name: each.default for name, each in inspect.signature(cls).parameters.items()}
    if dataclasses.is_dataclass(cls):
        factories = {each.name: each.default_factory for each in dataclasses.fields(cls)}
        found |= {name: make() for name, make in factories.items() if make is not dataclasses.MISSING}
    return found


def _meanings(cls: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in docstring_parser.parse(cls.__doc__ or "").params:
        for name in each.arg_name.split(", "):
            found[name] = _listed(_followed(each.description or "", name, cls), cls)
    return found


def _followed(description: str, name: str, cls: type) -> str:
    """``description``, or where it only points to another class, what that one says of ``name``."""
    pointer = re.fullmatch(r"see :class:`([\w.]+)`\.?", description)
    if pointer is None:
        return description
    module, _, other = pointer[1].rpartition(".")
    return _meanings(getattr(sys.modules[module or cls.__module__], other)).get(name, description)


def _listed(description: str, cls: type) -> str:
    """``description`` with the names in a registry that it points to, such as those of data sets."""

    def names(pointer: re.Match[str]) -> str:
        module, _, registry = pointer[1].rpartition(".")
        known = list(getattr(sys.modules[module or cls.__module__], registry))
        return ", ".join(f"``{name}``" for name in known) if isinstance(known[0], str) else f"``{pointer[1]}``"

    return re.sub(r":data:`([\w.]+)`", names, description)


class _Tables:
    """The sections of classes, each of which is described once, at the shortest name that leads to it."""

    def __init__(self) -> None:
        self._titles = {cls: f"{cls.__name__} at {place}" for cls, place in _places().items()}
        self._written: set[type] = set()

    def below(self, place: str, annotation: Any) -> list[str]:
        """Sections of the classes that may stand at ``place``, and of those inside them."""
        sections: list[str] = []
        for cls in classes_in(annotation):
            if self._titles[cls] == f"{cls.__name__} at {place}" and cls not in self._written:
                self._written.add(cls)
                inner = [text for key in keys_of(cls) for text in self.below(_place(place, key), key.annotation)]
                sections += [self._section(place, cls), *inner]
        return sections

    def _section(self, place: str, cls: type) -> str:
        text = docstring_parser.parse(cls.__doc__ or "")
        gap = "\n\n" if text.blank_after_short_description else "\n"
        about = gap.join(filter(None, [text.short_description, text.long_description]))
        rows = [
            (f"`{key.name}`", self._type(key.annotation), _default(place, key), _meaning(place, key))
            for key in keys_of(cls)
        ]
        table = _table(("key", "type", "default", "meaning"), rows) if rows else "It has no keys of its own."
        return f"### {self._titles[cls]}\n\n{_markdown(about)}\n\n{table}"

    def _type(self, annotation: Any) -> str:
        """In the words of someone who writes YAML."""
        classes = classes_in(annotation) if _is_choice(annotation) else []
        if classes:
            return " or ".join(f"[{cls.__name__}](#{slug(self._titles[cls])})" for cls in classes)
        origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
        if origin in (typing.Union, types.UnionType):
            return " or ".join(self._type(each) for each in inner)
        if origin is typing.Literal:
            return ", ".join(f"`{each}`" for each in inner)
        if origin in (list, tuple):
            length = f"{len(inner)} " if origin is tuple and Ellipsis not in inner else ""
            members = self._type(inner[0]).replace("number", "numbers").replace("text", "texts")
            return f"list of {length}{members}"
        if origin in (dict, Mapping):
            return "mapping" if inner[1] is Any else f"mapping of names to {self._type(inner[1])}"
        plain = {bool: "true or false", int: "whole number", float: "number", str: "text", types.NoneType: "null"}
        return plain.get(annotation, "mapping" if annotation is dict else str(annotation))


def _places() -> dict[type, str]:
    """Class → where it may stand: of several places one with the fewest levels."""
    found: dict[type, str] = {}
    waiting: list[tuple[str, Any]] = [(part, base) for part, (_, base) in PARTS.items()]
    for place, annotation in waiting:  # which grows on the way
        for cls in classes_in(annotation):
            if cls not in found:
                found[cls] = place
                waiting += [(_place(place, key), key.annotation) for key in keys_of(cls)]
    return found


def classes_in(annotation: Any) -> list[type]:
    """The classes that a configuration can put where ``annotation`` stands, also inside a list or a mapping."""
    if not _is_choice(annotation):
        return [cls for each in typing.get_args(annotation) for cls in classes_in(each)]
    offered: list[type] = [cls for cls in BY_BARE_NAME if annotation in cls.__mro__]
    return offered or [annotation]


def _is_choice(annotation: Any) -> bool:
    if not inspect.isclass(annotation) or typing.get_origin(annotation) is not None:
        return False
    return dataclasses.is_dataclass(annotation) or annotation.__module__.split(".")[0] in OURS


OURS = ("app", "modules", "datamodules", "callbacks")


def _place(place: str, key: Key) -> str:
    """``data.benchmarks.NAME`` and ``rollouts.rewards.N`` for what stands in a mapping or a list."""
    origins = {typing.get_origin(each) for each in (key.annotation, *typing.get_args(key.annotation))}
    inside = ".NAME" if dict in origins else ".N" if list in origins else ""
    return f"{place}.{key.name}{inside}"


def _default(place: str, key: Key) -> str:
    if f"{place}.init_args.{key.name}" in SEEDED:
        return "that of `seed_everything`, always"
    if key.default is inspect.Parameter.empty:
        return "required"
    if dataclasses.is_dataclass(key.default):
        given = dict(_changed(key.default))
        return f"`{_yaml(given)}`" if given else "its defaults"
    return f"`{_yaml(key.default)}`"


def _changed(settings: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of the fields that are not at their own defaults."""
    own = _defaults(type(settings))
    for each in dataclasses.fields(settings):
        if getattr(settings, each.name) != own[each.name]:
            yield each.name, getattr(settings, each.name)


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_yaml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else str(value)
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


# ── Markdown ──


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _meaning(place: str, key: Key) -> str:
    return _sentence(key.meaning) + COST * (key.name in COSTLY.get(place, ()))


def _sentence(meaning: str) -> str:
    text = " ".join(_markdown(meaning).split())
    plain = re.match(r"(a|[a-z]{2,})(-[a-z]+)*[,;:.]?( |$)", text)  # no key, number or symbol
    return text[:1].upper() + text[1:] if plain else text


def _markdown(text: str) -> str:
    """A docstring's markup as Markdown's."""
    named = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return named.replace("``", "`")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _top_level() -> str:
    own = [(f"`{name}`", *rest) for name, rest in TOP_LEVEL.items()]
    parts = [(f"[`{part}`](#{part})", "see below", _part_default(base), text) for part, (text, base) in PARTS.items()]
    return "## The top level\n\n" + _table(("key", "type", "default", "meaning"), [*own, *parts])


def _part_default(base: Any) -> str:
    return "required" if base in (PolicyModule, ProblemDataModule) else "its defaults" if base is None else "`null`"


def _trainer() -> str:
    """Lightning's keys: those with a use here, those that another key decides, and the names of the others."""
    defaults = {name: each.default for name, each in inspect.signature(Trainer).parameters.items()} | TRAINER_DEFAULTS
    used = [(f"`{name}`", kind, f"`{_yaml(defaults[name])}`", text) for name, (kind, text) in TRAINER_KEYS.items()]
    refused = [(f"`{name}`", _sentence(advice)) for name, (_, advice) in ELSEWHERE.items()]
    others = ", ".join(f"`{name}`" for name in defaults if name not in TRAINER_KEYS and name not in ELSEWHERE)
    return "\n\n".join(
        [
            _table(("key", "type", "default", "meaning"), used),
            "These are refused, because another key decides them:",
            _table(("key", "what to do instead"), refused),
            f"The others are passed on to Lightning's `Trainer` and have no use in most runs: {others}.",
        ]
    )


def main() -> None:
    """Prints the page."""
    sys.stdout.write(reference())


if __name__ == "__main__":
    main()
