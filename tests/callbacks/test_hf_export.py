"""An exported folder holds the policy that was trained, whatever its family keeps where."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.policy.lora import LoraSettings
from app.policy.settings import PolicySettings
from app.policy.sharding.merging import policy_weights
from app.policy.tokenizers import NewTokenizerSettings
from callbacks import HFExport
from tests.models import tiny_model
from tests.running import equal_weights, fit, make_data, make_module, make_rollouts


@pytest.mark.parametrize(("kind", "lora"), [("deepseek_v3", None), ("mixtral", LoraSettings(r=2))])
def test_an_export_has_every_weight_of_what_was_trained(tmp_path: Path, kind: str, lora: LoraSettings | None) -> None:
    """Biases of routers in buffers; adapters of experts merged."""
    model = tiny_model(kind, spread=1.0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(torch.rand(tensor.shape))
    model.save_pretrained(tmp_path / "base")
    settings = PolicySettings(path=str(tmp_path / "base"), tokenizer=NewTokenizerSettings())
    module = make_module(policy=replace(settings, lora=lora))
    fit(tmp_path, module, make_data(iterations=2), [make_rollouts(), HFExport(folder=str(tmp_path / "hf"))])
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    trained = {name: tensor.clone() for name, tensor in policy_weights(module.policy)}
    assert exported.keys() == model.state_dict().keys()
    assert equal_weights(exported, trained)
    assert not equal_weights(exported, dict(model.state_dict()))
