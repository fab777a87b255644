"""Which of a policy's tensors hold values that are not finite."""

import pytest
import torch

from app.policy.finite import NotFinite, weights_not_finite
from tests.models import tiny_model


def alone(own: set[str]) -> list[set[str]]:
    return [own]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_value_among_all_weights_is_found_and_its_tensor_named(value: float, dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    assert weights_not_finite(model, alone) is None
    name = "model.layers.1.mlp.up_proj.weight"
    model.get_parameter(name).data[-1, -1] = value
    found = weights_not_finite(model, alone)
    assert found == NotFinite((name,), len(list(model.parameters())))
    assert str(found) == f"{name} holds values that are not finite"


def test_the_largest_finite_weights_and_empty_shards_are_finite() -> None:
    model = tiny_model()
    model.lm_head.weight.data[0] = torch.finfo(torch.float32).max
    model.empty = torch.nn.Parameter(torch.empty(0))
    assert weights_not_finite(model, alone) is None


def test_the_first_in_the_models_order_is_named_whichever_rank_holds_it() -> None:
    model = tiny_model("llama")
    model.lm_head.weight.data[3] = float("nan")
    elsewhere = "model.layers.0.self_attn.q_proj.weight"
    found = weights_not_finite(model, lambda own: [own, {elsewhere}])
    assert found is not None
    assert found.names == (elsewhere, "lm_head.weight")
    assert str(found).endswith(f"and 1 more of its {found.total} tensors do")
