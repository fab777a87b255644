"""Settings of the rollouts that cannot be are refused where they are declared."""

from typing import Any

import pytest
import torch

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


@pytest.mark.parametrize(
    ("dtypes", "device", "truncated", "limit"),
    [
        ((torch.float32, torch.float32), "cpu", False, 1e-3),
        ((torch.float32, torch.float32), "cuda", False, 0.02),
        ((torch.float32, torch.bfloat16), "cpu", False, 0.1),
        ((torch.float16, torch.float16), "cuda", False, 0.02),
        ((torch.float32, torch.float32), "cpu", True, 0.1),
    ],
)
def test_the_first_rollout_may_differ_by_what_rounding_does(
    dtypes: tuple[torch.dtype, ...], device: str, truncated: bool, limit: float
) -> None:
    assert MismatchSettings().limit(dtypes, device, truncated) == limit
    assert MismatchSettings(preflight_limit=0.3).limit(dtypes, device, truncated) == 0.3
    assert MismatchSettings(preflight_limit=None).limit(dtypes, device, truncated) is None
