"""The walk over configuration files beside classes' signatures, and the line that comes of an error."""

from argparse import ArgumentError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonargparse import ArgumentParser

from app.cli.errors import (
    Source,
    check_keys,
    configuration_error,
    explain,
    nearest,
    parameters,
    read_sources,
)
from app.cli.runner import BY_BARE_NAME  # noqa: F401  a class is found by its name once it has been imported
from app.engines.engine import RolloutEngine
from app.errors import ConfigurationError
from app.rewards.reward import RewardFunction


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0


class Base:
    def __init__(self, size: int = 1) -> None: ...


class Child(Base):
    def __init__(self, depth: int = 2, **rest: int) -> None: ...


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    parts: list[Base] = field(default_factory=list)
    named: dict[str, Inner] = field(default_factory=dict)
    free: dict | None = None
    base: Base | None = None


TOP = {"outer": Outer, "name": str}


def problem(values: dict) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check_keys([Source("a.yaml", values)], TOP)
    return str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"outer": {"inner": {"rate": 2}, "free": {"anything": 1}}, "name": "x"},
        {"outer": {"class_path": "Outer", "init_args": {"inner": {"rate": 2}}}},
        {"outer": {"parts": [{"class_path": "Child", "init_args": {"depth": 1, "size": 3}}]}},
        {"outer": {"named": {"any": {"rate": 2}}, "base": None}},
        {"outer": {"base": {"class_path": f"{__name__}.Child", "depth": 3}}},
    ],
)
def test_valid_keys_pass(values: dict) -> None:
    check_keys([Source("a.yaml", values)], TOP)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"outr": {}}, "outr: no such key; did you mean outer? (in a.yaml)"),
        ({"outer": {"iner": {}}}, "outer.iner: no such key; did you mean inner? (in a.yaml)"),
        ({"outer": {"inner": {"rte": 1}}}, "outer.inner.rte: no such key; did you mean rate? (in a.yaml)"),
        ({"outer": {"init_args": {"inner": {"rte": 1}}}}, "outer.inner.rte: no such key; did you mean rate?"),
        ({"outer": {"named": {"x": {"rat": 1}}}}, "outer.named.x.rat: no such key; did you mean rate?"),
        (
            {"outer": {"parts": [{"class_path": "Chld"}]}},
            "outer.parts.0.class_path: no class Chld; did you mean Child?",
        ),
        (
            {"outer": {"parts": [{"class_path": "Child", "deepth": 1}]}},
            "outer.parts.0.deepth: no such key; did you mean",
        ),
        (
            {"outer": {"base": {"class_path": "nowhere.Thing"}}},
            "outer.base.class_path: no class nowhere.Thing; there are",
        ),
    ],
)
def test_a_wrong_key_is_named_whole_with_its_file_and_the_nearest(values: dict, expected: str) -> None:
    assert problem(values).startswith(expected)


def test_the_last_source_that_sets_a_key_is_blamed() -> None:
    sources = [Source("a.yaml", {"outer": {"inner": {"rte": 1}}}), Source("b.yaml", {"outer": {"inner": {"rte": 2}}})]
    with pytest.raises(ConfigurationError, match=r"\(in b.yaml\)"):
        check_keys(sources, TOP)


def test_later_files_may_leave_out_the_class() -> None:
    first = Source("a.yaml", {"outer": {"base": {"class_path": "Child", "init_args": {"depth": 1}}}})
    check_keys([first, Source("b.yaml", {"outer": {"base": {"init_args": {"depth": 2}}}})], TOP)
    with pytest.raises(ConfigurationError, match="did you mean depth"):
        check_keys([first, Source("b.yaml", {"outer": {"base": {"deepth": 2}}})], TOP)


def test_sources_are_the_files_in_order_and_the_options(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("outer: {inner: {rate: 2}}\n")
    arguments = ["--config", str(path), "--outer.inner.rate", "3", "--name=x", "--print_config"]
    assert read_sources(arguments) == [
        Source(str(path), {"outer": {"inner": {"rate": 2}}}),
        Source("command line", {"outer": {"inner": {"rate": "3"}}, "name": "x"}),
    ]


@pytest.mark.parametrize(("text", "expected"), [("a: [", "is not YAML"), ("", "holds no keys"), ("3", "holds no keys")])
def test_a_broken_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=f"broken.yaml: {expected}"):
        read_sources([f"--config={path}"])


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "grpo.yaml").write_text("a: 1")
    with pytest.raises(ConfigurationError, match=r"did you mean .*grpo.yaml"):
        read_sources(["--config", str(tmp_path / "gpro.yaml")])


def test_the_parsers_message_becomes_one_line_with_the_whole_key() -> None:
    error = ConfigurationError("Parser key \"rate\":\n  Expected a <class 'float'>. Got value: x")
    source = Source("a.yaml", {"outer": {"inner": {"rate": "x"}}})
    assert explain(error, [source]) == "outer.inner.rate: Expected float. Got value: x (in a.yaml)"


class Unannotated:
    """A reward function as far as Python is concerned."""

    name = "mine"

    def __call__(self, samples):
        return [0.0 for _ in samples]


def test_a_class_whose_annotations_are_not_the_protocols_is_told_so() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=list[RewardFunction])
    values = {"rewards": [{"class_path": f"{__name__}.Unannotated"}]}
    with pytest.raises(ArgumentError) as caught:
        parser.parse_object(values)
    said = explain(ConfigurationError(str(caught.value)), [Source("a.yaml", values)])
    assert "Unannotated does not implement protocol RewardFunction; each of its methods needs" in said
    assert said.endswith("(in a.yaml)")


def test_a_key_known_by_its_end_is_completed_from_the_sources() -> None:
    source = Source("a.yaml", {"outer": {"inner": {"rate": -1}}})
    assert explain(ConfigurationError("must be positive", key="inner.rate"), [source]) == (
        "outer.inner.rate: must be positive (in a.yaml)"
    )


def test_the_innermost_configuration_error_is_found() -> None:
    try:
        try:
            raise ConfigurationError("the cause", key="a.b")
        except ConfigurationError as inner:
            raise ValueError("wrapped in pages") from inner
    except ValueError as error:
        found = configuration_error(error)
    assert str(found) == "a.b: the cause"
    assert configuration_error(ValueError("another")) is None


def test_of_two_keys_with_the_same_end_the_one_whose_value_is_quoted_is_blamed() -> None:
    source = Source("a.yaml", {"outer": {"inner": {"path": "model"}}, "rewards": [{"path": "mine:nope"}]})
    error = ConfigurationError("'mine' has no 'nope' of 'mine:nope'", key="path")
    assert explain(error, [source]) == "rewards.0.path: 'mine' has no 'nope' of 'mine:nope' (in a.yaml)"


def test_a_mapping_or_list_on_the_command_line_is_read_as_keys() -> None:
    options = ["--outer.inner", "{rte: 2}", "--name", "3"]
    assert read_sources(options) == [Source("command line", {"outer": {"inner": {"rte": 2}}, "name": "3"})]


def test_a_key_that_stands_twice_in_a_file_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("outer:\n  inner: {rate: 1}\nname: x\nouter:\n  free: {}\n")
    with pytest.raises(ConfigurationError, match=r"twice\.yaml: .*the key outer stands twice, in lines 1 and 4"):
        read_sources(["--config", str(path)])


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_sources(["--config", str(path)])[0].values == {"name": "x"}


def test_a_file_that_is_not_utf8_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigurationError, match=r"latin\.yaml: is not UTF-8"):
        read_sources(["--config", str(tmp_path / "latin.yaml")])


@dataclass(frozen=True)
class Parts:
    rewards: list[RewardFunction] | None = None
    engine: RolloutEngine | None = None
    base: Base | None = None
    plan: Base | str = "auto"
    open: dict[str, Any] | None = None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rewards": [{"class_path": "FormatRewards"}]}, "did you mean FormatReward?"),
        ({"rewards": [{"class_path": "app.rewards.Corectness"}]}, "did you mean CorrectnessReward?"),
        ({"rewards": ["FormatRewad"]}, "parts.rewards.0.class_path: no class FormatRewad; did you mean FormatReward?"),
        # the paths of an earlier layout
        ({"rewards": ["app.rewards.functions.FormatReward"]}, "did you mean FormatReward?"),
        ({"engine": "app.rollout.vllm_engine.VLLMEngine"}, "did you mean VLLMEngine?"),
        (
            {"engine": "vllm"},
            "parts.engine.class_path: no class vllm; did you mean VLLMEngine?",
        ),
        ({"engine": {"class_path": "Zzz"}}, "TransformersEngine, VLLMEngine"),
        ({"base": "Chld"}, "parts.base.class_path: no class Chld; did you mean Child?"),
    ],
)
def test_a_class_that_is_none_names_the_nearest_as_it_is_to_be_written(values: dict, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_keys([Source("a.yaml", {"parts": values})], {"parts": Parts})
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"base": "null"}, {"base": "Child"}, {"base": "{}"}, {"plan": "x"}, {"open": {"a": "b"}}]
)
def test_what_the_parser_takes_for_a_class_passes(values: dict) -> None:
    check_keys([Source("command line", {"parts": values})], {"parts": Parts})


def test_parameters_follow_keywords_to_the_bases() -> None:
    assert parameters(Child).keys() - {"self"} == {"depth", "size"}


def test_nearest_lists_what_there_is_where_nothing_is_near() -> None:
    assert nearest("zzz", ["beta", "alpha"]) == "; there are alpha, beta"


@dataclass(frozen=True)
class Needs:
    count: int = 1
    limit: int | None = None
    kind: Literal["a", "b"] = "a"
    maybe: Literal["a", None] = None
    text: str = ""
    pair: tuple[float, float] = (0.0, 1.0)
    steps: tuple[int, ...] = ()
    named: dict[str, Inner] = field(default_factory=dict)
    inner: Inner = Inner()
    parts: list[Base] = field(default_factory=list)
    free: Any = None


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"count": None}, "count"),
        ({"count": "null"}, "count"),  # as the command line gives it
        ({"count": "~"}, "count"),
        ({"kind": None}, "kind"),
        ({"text": None}, "text"),
        ({"inner": None}, "inner"),
        ({"inner": "null"}, "inner"),
        ({"inner": {"rate": None}}, "inner.rate"),
        ({"pair": [0.5, None]}, "pair.1"),
        ({"steps": [1, None]}, "steps.1"),
        ({"named": {"x": None}}, "named.x"),
        ({"named": {"x": {"rate": None}}}, "named.x.rate"),
        ({"parts": [None]}, "parts.0"),
        ({"parts": [{"class_path": "Child", "init_args": {"depth": None}}]}, "parts.0.depth"),
        ({"parts": [{"class_path": None}]}, "parts.0.class_path"),
        ({"parts": [{"class_path": "Child", "init_args": None}]}, "parts.0.init_args"),
        (None, ""),
    ],
)
def test_null_where_a_value_is_needed_is_named(values: Any, key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_keys([Source("a.yaml", {"needs": values})], {"needs": Needs})
    path = f"needs.{key}".rstrip(".")
    assert str(caught.value).startswith(f"{path}: needs a value, and null is none")
    assert str(caught.value).endswith("(in a.yaml)")


@pytest.mark.parametrize(
    "values", [{"limit": None}, {"limit": "null"}, {"maybe": None}, {"free": None}, {"text": "null"}, {"text": ""}]
)
def test_null_passes_where_the_annotation_takes_it(values: dict) -> None:
    check_keys([Source("a.yaml", {"needs": values})], {"needs": Needs})


def test_a_later_null_is_blamed_on_its_file() -> None:
    with pytest.raises(ConfigurationError, match=r"needs.inner.rate: .*null is none.* \(in b.yaml\)"):
        check_keys(
            [
                Source("a.yaml", {"needs": {"inner": {"rate": 1}}}),
                Source("b.yaml", {"needs": {"inner": {"rate": None}}}),
            ],
            {"needs": Needs},
        )
