"""Loading, building, refusing and saving policies and tokenizers, on real HF folders."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import jsonargparse
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from app.errors import ConfigurationError
from app.policy.exporting import save_policy
from app.policy.models import (
    NewTokenizerSettings,
    PolicySettings,
    check,
    check_path,
    end_token_ids,
    load_policy,
    load_tokenizer,
)
from tests.models import tiny_config

SYNTHETIC = NewTokenizerSettings()
ROWS = [
    {"problem": f"What is {a} + {b}?", "answer": str(a + b), "solution": f"{a} + {b} = {a + b}, so \\boxed{{{a + b}}}"}
    for a in range(12)
    for b in range(12)
]


def new_settings(kind="qwen2", **changes):
    config = tiny_config(kind)
    del config["vocab_size"]
    return PolicySettings(config=config | changes, tokenizer=SYNTHETIC)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    settings = new_settings("llama")
    return save_policy(load_policy(settings, 3), load_tokenizer(settings), tmp_path_factory.mktemp("hf") / "policy")


@pytest.fixture
def copied(folder, tmp_path):
    """A folder to be broken; files of the good one are linked."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).symlink_to(file)
    return broken


def replace_file(folder, name, content):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)


# ── settings ──


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "policy.path: give exactly one of path"),
        ({"path": "a", "config": {"model_type": "qwen2"}}, "exactly one"),
        ({"config": {}, "tokenizer": "a"}, "policy.config: model_type is missing"),
        ({"config": {"model_type": "qwen2"}}, "policy.tokenizer: a new model needs one"),
        ({"config": {"model_type": "qwen2"}, "tokenizer": "a", "revision": "b"}, "policy.revision"),
        ({"path": "a", "dtype": "float23"}, "policy.dtype: unknown name 'float23'; did you mean 'float32'"),
        ({"path": "a", "attn_implementation": "sdqa"}, "did you mean 'sdpa'"),
    ],
)
def test_impossible_settings_are_refused_when_they_are_made(settings, message):
    with pytest.raises(ConfigurationError) as caught:
        PolicySettings(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "bpa"}, "policy.tokenizer.kind: unknown name 'bpa'; did you mean 'bpe'"),
        ({"kind": "bpe"}, "policy.tokenizer.corpus: kind: bpe learns from a JSON-lines file"),
        ({"corpus": "a.jsonl"}, "did you mean kind: bpe"),
        ({"vocab_size": 300}, "policy.tokenizer.vocab_size"),
        ({"kind": "bpe", "corpus": "a.jsonl", "vocab_size": 100}, "at least 260"),
    ],
)
def test_impossible_tokenizers_are_refused_when_they_are_made(settings, message):
    with pytest.raises(ConfigurationError) as caught:
        NewTokenizerSettings(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        new_settings(),
        PolicySettings(path="org/name", revision="main", dtype="bfloat16", attn_implementation="sdpa"),
        PolicySettings(config={"model_type": "llama"}, tokenizer="org/name", gradient_checkpointing=True),
        PolicySettings(
            config={"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            tokenizer=NewTokenizerSettings("a.jsonl", "bpe", 512),
        ),
    ],
)
def test_settings_survive_the_parser_of_configuration_files(settings, tmp_path):
    parser = jsonargparse.ArgumentParser(parser_mode="omegaconf+")
    parser.add_argument("--config", action="config")
    parser.add_argument("--policy", type=PolicySettings)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"policy": asdict(settings)}))
    parsed = parser.instantiate_classes(parser.parse_args([f"--config={file}"]))
    assert parsed.policy == settings


# ── checks before weights ──


def test_missing_folders_name_their_nearest_neighbour(folder, monkeypatch):
    for path in (f"{folder.parent}/polcy", "./polcy"):
        monkeypatch.chdir(folder.parent)
        with pytest.raises(ConfigurationError, match=r"policy.path: no such folder: .*did you mean .*policy\?"):
            check_path(PolicySettings(path=path))


def test_hub_ids_pass_unless_their_first_part_is_a_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = PolicySettings(path="runs/policy")
    check_path(settings)
    check_path(PolicySettings(path="Qwen/Qwen2.5-Math-1.5B", tokenizer="gpt2"))
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigurationError, match="no such folder: runs/policy"):
        check_path(settings)


def test_folders_without_a_model_are_refused(copied, tmp_path):
    check_path(PolicySettings(path=str(copied)))
    (copied / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"holds none of \*.safetensors, \*.bin"):
        check_path(PolicySettings(path=str(copied)))
    (copied / "config.json").unlink()
    with pytest.raises(ConfigurationError, match=r"holds no config.json"):
        check_path(PolicySettings(path=str(copied)))
    with pytest.raises(ConfigurationError, match=r"policy.tokenizer: .* holds none of tokenizer"):
        check_path(PolicySettings(config={"model_type": "qwen2"}, tokenizer=str(tmp_path)))
    with pytest.raises(ConfigurationError, match="is a file"):
        check_path(PolicySettings(path=__file__))


def test_a_missing_corpus_is_refused(corpus):
    tokenizer = NewTokenizerSettings(str(corpus.with_name("problem.jsonl")), "bpe")
    with pytest.raises(ConfigurationError, match=r"policy.tokenizer.corpus: no such file: .*did you mean"):
        check_path(PolicySettings(config={"model_type": "qwen2"}, tokenizer=tokenizer))


def test_settings_and_paths_are_checked_without_importing_transformers():
    code = (
        "import sys; from app.policy.models import PolicySettings, check_path;"
        "check_path(PolicySettings(path='org/name')); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen22"}, "policy.config.model_type: unknown name 'qwen22'; did you mean 'qwen2'?"),
        ({"hiden_size": 8}, "policy.config.hiden_size: unknown name 'hiden_size'; did you mean 'hidden_size'?"),
        ({"hidden_size": "wide"}, "policy.config: cannot load the configuration of qwen2"),
        ({"num_attention_heads": 5}, "policy.config.num_attention_heads: 5 attention heads do not divide"),
        ({"num_key_value_heads": 3}, "policy.config.num_key_value_heads: 3 does not divide"),
    ],
)
def test_bad_configurations_are_refused_before_a_model_is_built(changes, message):
    settings = new_settings()
    with pytest.raises(ConfigurationError) as caught:
        check(replace(settings, config=settings.config | changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ── new models ──


def test_a_new_model_is_a_function_of_its_seed_and_touches_no_global_state():
    state = torch.get_rng_state()
    one, same, other = (load_policy(new_settings(), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.dim() == 1 or not torch.equal(a, c), name
    assert not one.training


def test_a_new_model_takes_sizes_and_special_tokens_from_its_tokenizer():
    settings = new_settings("llama")
    tokenizer, model = load_tokenizer(settings), load_policy(settings)
    assert model.config.vocab_size == len(tokenizer) == 72
    # LLaMA's own default is 2, another token here
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert end_token_ids(tokenizer, model) == (tokenizer.eos_token_id,)
    assert load_policy(new_settings(vocab_size=100)).get_input_embeddings().weight.shape[0] == 100
    with pytest.raises(ConfigurationError, match=r"policy.config.vocab_size: the model knows 70 tokens"):
        load_policy(new_settings(vocab_size=70))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_attention_and_checkpointing_are_as_asked(dtype):
    settings = replace(new_settings(), dtype=dtype, attn_implementation="eager", gradient_checkpointing=True)
    model = load_policy(settings)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert model.config._attn_implementation == "eager"
    assert model.is_gradient_checkpointing
    # bfloat16 frequencies would move positions: they stay float32
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_what_transformers_refuses_becomes_one_line():
    settings = new_settings()
    with pytest.raises(
        ConfigurationError, match=r"^policy.config: cannot load the model of qwen2: .*nonsense"
    ) as caught:
        load_policy(replace(settings, config=settings.config | {"hidden_act": "nonsense"}))
    assert "\n" not in str(caught.value)


# ── folders ──


def test_a_saved_policy_comes_back_equal_and_quietly(folder, capfd):
    settings = PolicySettings(path=str(folder))
    model, tokenizer = load_policy(settings), load_tokenizer(settings)
    original = load_policy(new_settings("llama"), 3)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(input_ids=ids).logits, original(input_ids=ids).logits)
    assert tokenizer.chat_template == load_tokenizer(new_settings()).chat_template
    save_policy(model, tokenizer, folder.parent / "again")
    assert capfd.readouterr() == ("", "")
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 72
    assert AutoTokenizer.from_pretrained(folder).eos_token == tokenizer.eos_token
    assert (folder / "model.safetensors").exists()


def test_saving_replaces_a_folder_and_leaves_nothing_beside_it(tmp_path):
    settings, target = new_settings(), tmp_path / "deep" / "policy"
    for seed in (1, 2):
        save_policy(load_policy(settings, seed), load_tokenizer(settings), target)
    assert [path.name for path in target.parent.iterdir()] == ["policy"]
    loaded = load_policy(PolicySettings(path=str(target)))
    expected = load_policy(settings, 2)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))


def test_a_failed_save_leaves_the_old_folder_alone(tmp_path, monkeypatch):
    settings, target = new_settings(), tmp_path / "policy"
    model, tokenizer = load_policy(settings), load_tokenizer(settings)
    save_policy(model, tokenizer, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_policy(model, tokenizer, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{bad"),
        ("config.json", b'{"model_type": "qwen22"}'),
        ("model.safetensors", b"12345"),
        ("tokenizer.json", b"{bad"),
    ],
)
def test_broken_files_give_one_line_that_names_the_folder(copied, name, content):
    replace_file(copied, name, content)
    settings = PolicySettings(path=str(copied))
    load = load_tokenizer if name == "tokenizer.json" else load_policy
    with pytest.raises(ConfigurationError) as caught:
        load(settings)
    assert str(caught.value).startswith("policy.path: cannot load the ")
    assert str(copied) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("what", "change"), [("lack", {"num_hidden_layers": 3}), ("another size", {"hidden_size": 64})]
)
def test_incomplete_weights_are_refused_not_filled_up_with_noise(copied, what, change):
    config = json.loads((copied / "config.json").read_text())
    replace_file(copied, "config.json", json.dumps(config | change).encode())
    with pytest.raises(ConfigurationError, match=rf"policy.path: the weights in .* {what} .* and \d+ more"):
        load_policy(PolicySettings(path=str(copied)))


def test_a_tokenizer_larger_than_the_model_is_refused(folder, corpus):
    tokenizer = NewTokenizerSettings(str(corpus), "bpe", 300)
    with pytest.raises(ConfigurationError, match="the model knows 72 tokens, its tokenizer has"):
        load_policy(PolicySettings(path=str(folder), tokenizer=tokenizer))


# ── tokenizers ──


def test_several_end_tokens_are_all_known():
    settings = new_settings("llama")
    tokenizer, model = load_tokenizer(settings), load_policy(settings)
    model.generation_config = GenerationConfig(eos_token_id=[7, 1, 5])
    assert end_token_ids(tokenizer, model) == (1, 5, 7)
    assert end_token_ids(tokenizer) == (1,)
    tokenizer.eos_token = tokenizer.chat_template = None
    with pytest.raises(ConfigurationError, match="names an end token"):
        end_token_ids(tokenizer)


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(folder, copied):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    replace_file(copied, "tokenizer_config.json", json.dumps(config).encode())
    tokenizer = load_tokenizer(PolicySettings(path=str(copied)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    del config["eos_token"]
    replace_file(copied, "tokenizer_config.json", json.dumps(config).encode())
    with pytest.raises(ConfigurationError, match="no end token"):
        load_tokenizer(PolicySettings(path=str(copied)))


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_saved_tokenizer_is_read_back_as_it_was(tmp_path: Path, kind: str) -> None:
    """AutoTokenizer would give a Qwen2 model its own pipeline, and the words of this vocabulary would be gone."""
    config = tiny_config(kind)
    del config["vocab_size"]
    settings = PolicySettings(config=config, tokenizer=NewTokenizerSettings())
    made = load_tokenizer(settings)
    folder = save_policy(load_policy(settings), made, tmp_path / "policy")
    text = "Tom has 25 apples . finds 3 . how many ?"
    loaded = load_tokenizer(PolicySettings(path=str(folder)))
    assert loaded(text).input_ids == made(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == text


def test_quantised_weights_are_refused_before_they_are_read(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").unlink()
    (copied / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ConfigurationError, match=r"policy\.path: .*quantised \(fp8\)"):
        load_policy(PolicySettings(path=str(copied)))


def test_families_without_checkpointing_of_activations_say_so() -> None:
    settings = PolicySettings(config={"model_type": "xlnet", "n_layer": 1}, tokenizer=SYNTHETIC)
    with pytest.raises(ConfigurationError, match=r"policy\.gradient_checkpointing: XLNetLMHeadModel has none"):
        load_policy(replace(settings, gradient_checkpointing=True))


def test_a_router_is_not_asked_for_its_balance(tmp_path: Path) -> None:
    """It would be computed in each pass, from a mask that is not a batch's, and added to no loss."""
    policy = load_policy(new_settings("mixtral", output_router_logits=True))
    assert policy(input_ids=torch.arange(3, 9)[None], use_cache=False).get("router_logits") is None
