"""The runtime checker that reads the annotations of shapes."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

CONF = BeartypeConf(is_pep484_tower=True)  # an int will do for a float


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, every call of which is compared with its annotations."""
    return beartype(conf=CONF)(function)
