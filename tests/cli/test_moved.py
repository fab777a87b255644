"""A key of an earlier version is refused with the place where it is now."""

from typing import Any

import pytest

from app.cli.errors import Source, check_keys
from app.cli.moved import MOVED
from app.cli.runner import _top_level
from app.errors import ConfigurationError


def nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def checked(key: str, written_out: bool = False) -> None:
    part, _, rest = key.partition(".")
    inner = {"init_args": nested(rest, 1)} if written_out else nested(rest, 1)
    values: dict[str, Any] = {part: inner}
    if part == "model":
        values[part]["class_path"] = "GRPOLambdaModule"
    check_keys([Source("mine.yaml", values)], _top_level("fit"))


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("old", MOVED)
def test_an_old_key_is_refused_with_the_new_one(old: str, written_out: bool) -> None:
    with pytest.raises(ConfigurationError) as caught:
        checked(old, written_out)
    assert str(caught.value) == f"{old}: is now {MOVED[old]} (in mine.yaml)"


@pytest.mark.parametrize("new", MOVED.values())
def test_the_place_that_is_named_exists(new: str) -> None:
    checked(new)
