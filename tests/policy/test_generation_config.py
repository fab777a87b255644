"""Generation configurations: end tokens however a policy is loaded, and what is written again."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM

from app.errors import ConfigurationError
from app.policy.exporting import save_policy
from app.policy.models import PolicySettings, empty_policy, end_token_ids, load_policy, load_tokenizer
from app.policy.sharding.wrapping import plain_model
from tests.running import policy_settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_policy(load_policy(policy_settings()), load_tokenizer(policy_settings()), tmp_path / "policy")


def write_generation(folder: Path, content: dict[str, Any] | None) -> None:
    (folder / "generation_config.json").unlink()
    if content is not None:
        (folder / "generation_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 1]}, {}, (1, 7)),
        ({"eos_token_id": 5, "do_sample": True, "temperature": 0.6}, {}, (1, 5)),
        (None, {"eos_token_id": [1, 9]}, (1, 9)),
        (None, {"eos_token_id": None}, (1,)),  # and not 2, which is LLaMA's default
    ],
)
def test_end_tokens_are_those_of_the_folder_with_and_without_weights(
    folder: Path, generation: dict[str, Any] | None, config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    write_generation(folder, generation)
    entries = json.loads((folder / "config.json").read_text()) | config
    known = {name: value for name, value in entries.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(known))
    settings = PolicySettings(path=str(folder))
    tokenizer, reference = load_tokenizer(settings), AutoModelForCausalLM.from_pretrained(folder)
    loaded, empty = load_policy(settings), empty_policy(settings)
    for model in (reference, loaded, empty, plain_model(loaded), plain_model(empty)):
        assert end_token_ids(tokenizer, model) == expected
        assert model.generation_config.to_diff_dict() == reference.generation_config.to_diff_dict()
    saved = save_policy(loaded, tokenizer, folder.parent / "again")
    assert end_token_ids(tokenizer, AutoModelForCausalLM.from_pretrained(saved)) == expected


def test_a_generation_configuration_that_transformers_refuses_to_save_does_not_lose_the_policy(
    folder: Path,
) -> None:
    """Published ones name a temperature without do_sample; transformers before 5.24 refuses to save them, and the run
    would end with nothing exported."""
    sloppy = {"eos_token_id": [1, 7], "temperature": 0.6, "top_p": 0.9}
    write_generation(folder, sloppy)
    model = load_policy(PolicySettings(path=str(folder)))
    if Version(transformers.__version__) < Version("5.24"):
        with pytest.raises(ValueError, match="do_sample"):
            model.save_pretrained(folder.parent / "transformers")
    saved = save_policy(model, load_tokenizer(PolicySettings(path=str(folder))), folder.parent / "again")
    assert sloppy.items() <= json.loads((saved / "generation_config.json").read_text()).items()
    assert model.generation_config.eos_token_id == [1, 7]


@pytest.mark.parametrize("load", [load_policy, empty_policy])
def test_a_broken_generation_configuration_is_not_taken_for_a_missing_one(folder: Path, load: Any) -> None:
    (folder / "generation_config.json").write_text("{bad")
    with pytest.raises(
        ConfigurationError, match=r"^policy.path: cannot load the generation configuration of "
    ) as caught:
        load(PolicySettings(path=str(folder)))
    assert "\n" not in str(caught.value)
