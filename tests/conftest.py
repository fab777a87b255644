"""Shapes are checked while the tests run: every call in these modules is compared with its annotations."""

from collections.abc import Iterator

import jaxtyping
import pytest

from tests.shape_checker import checked

CHECKED = ["app.algorithm", "app.policy.head_log_probs", "app.policy.logprobs", "app.policy.packing"]

# Before any of them is imported. A user's run is not slowed down: annotations alone check nothing.
jaxtyping.install_import_hook(CHECKED, f"{checked.__module__}.checked")


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """As in a user's run, where wrong shapes meet our own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
