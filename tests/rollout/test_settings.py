"""Settings of the rollouts that cannot be are refused where they are declared."""

from typing import Any

import pytest

from app.errors import ConfigurationError
from app.rollout.collection import TruncationSettings
from app.rollout.mismatch import MismatchSettings
from app.rollout.schedule import ScheduleSettings


@pytest.mark.parametrize(
    ("settings", "values", "key"),
    [
        (ScheduleSettings, {"every_n_iterations": 0}, "schedule.every_n_iterations"),
        (TruncationSettings, {"mode": "drop"}, "truncation.mode"),
        (TruncationSettings, {"penalty": -1.0}, "truncation.penalty"),
        (MismatchSettings, {"preflight_limit": -0.1}, "mismatch.preflight_limit"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_their_key(settings: Any, values: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(**values)
    assert caught.value.key == f"rollouts.{key}"
