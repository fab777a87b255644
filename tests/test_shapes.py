"""In the tests, a tensor of the wrong shape or dtype is refused where it is handed over, in private functions too."""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jaxtyping
import pytest
import torch

from app.algorithm import applications, kl, objective, ratios, reductions, traces
from app.algorithm.advantages import group_advantages
from app.algorithm.objective import ObjectiveSettings, normaliser, policy_objective
from app.policy import head_log_probs, logprobs, packing
from app.policy.packing import build

MODULES = [applications, kl, objective, ratios, reductions, traces, head_log_probs, logprobs, packing]
LOG_PROBS, MASK = torch.zeros(2, 5), torch.ones(2, 5)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (traces.accumulate, (torch.zeros(2, 5), torch.ones(2, 4), 0.9, "both")),
        (traces.accumulate, (torch.zeros(2, 5, dtype=torch.int64), MASK, 0.9, "both")),
        (traces.weights, (torch.ones(5), 0.9, "both", "forward")),
        (traces._forward_both, (torch.zeros(2, 5).double(), torch.zeros(2).double(), 0.9)),
        (normaliser, (torch.ones(2, 5, 1), ObjectiveSettings())),
        (policy_objective, (LOG_PROBS, LOG_PROBS, None, torch.zeros(5), MASK, ObjectiveSettings())),
        (ratios.with_gradient_times, (LOG_PROBS, torch.zeros(2, 1))),
        (kl.k3, (torch.zeros(5, dtype=torch.int64),)),
        (group_advantages, (torch.zeros(6),)),
        (logprobs.selective_log_softmax, (torch.zeros(2, 5, 7), torch.zeros(2, 4, dtype=torch.int64))),
        (logprobs.entropy_of, (torch.zeros(2, 5, 7, dtype=torch.int64),)),
        (packing.positions, (torch.ones(2, 5),)),
    ],
)
def test_a_wrong_shape_or_dtype_is_refused(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        function(*arguments)


def test_a_batch_whose_parts_do_not_fit_is_refused() -> None:
    batch = build([[1, 2], [3]], [[4], [5, 6]], pad_id=0)
    parts = {**vars(batch), "completion_mask": torch.ones(3, 2, dtype=torch.bool)}
    with pytest.raises(jaxtyping.TypeCheckError, match="completion_mask"):
        packing.TokenBatch(**parts)


def _functions(module: ModuleType) -> list[Any]:
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    classes = [value for value in own if inspect.isclass(value)]
    members = [vars(each)[name] for each in classes for name in vars(each) if name in ("select", "forward", "backward")]
    return [getattr(value, "__func__", value) for value in [*own, *members] if not inspect.isclass(value)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_function_says_its_shapes(module: ModuleType) -> None:
    """No bare ``Tensor`` and no ``Any`` in a signature, so that there is something to check."""
    functions = [each for each in _functions(module) if inspect.isfunction(each)]
    assert functions
    for function in functions:
        hints = [str(hint) for hint in inspect.get_annotations(inspect.unwrap(function)).values()]
        bare = {"<class 'torch.Tensor'>", "typing.Any"} & set(hints)
        assert not bare or function.__name__ in UNSHAPED, (function.__qualname__, hints)


UNSHAPED = {
    "_check_shapes",  # whose work it is to refuse them
    "_positions",  # ``like`` gives a device, of whatever shape it is
    "_decay_triangle",
}
