"""Subword tokenizers learned on the spot from a file."""

import json
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.policy.models import NewTokenizerSettings, PolicySettings, load_tokenizer
from app.policy.tokenizers import _texts
from tests.policy.test_models import ROWS


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_a_subword_tokenizer_is_learned_the_same_each_time(corpus):
    settings = PolicySettings(config={"model_type": "qwen2"}, tokenizer=NewTokenizerSettings(str(corpus), "bpe", 300))
    one, same = load_tokenizer(settings), load_tokenizer(settings)
    assert one.get_vocab() == same.get_vocab()
    assert 260 < len(one) <= 300
    for text in ("What is 3 + 4? \\boxed{7}", "ünïcode  \n\t x²", " leading space"):
        assert one.decode(one.encode(text)) == text
    assert len(one.encode("1234")) == 4
    assert len(one.encode("What is")) < 7
    assert one.eos_token_id in one.encode("<|im_end|>")
    chat = one.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert {one.pad_token, one.padding_side} == {"<|endoftext|>", "left"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\n{bad\n", r"problems\.jsonl: row 2: is not JSON"),
        (b'{"text": "a"}\n\n3\n', "no row of"),
        (b'{"problem": " "}\n', "no row of"),
        (b"", "no row of"),
        (b'{"problem": "caf\xe9"}\n', "row 1: is not UTF-8"),
        ('{"problem": "a"}\n'.encode("utf-16"), "row 1: is UTF-16"),
        (b'{"problem": "a"}\n{"problem": "\\ud800"}\n', "row 2: is wrongly encoded"),
        (b'[{"problem": "a"}]', "row 1: is a list; JSON lines hold one object a line"),
        (b"\x1f\x8b\x08", "is compressed"),
    ],
)
def test_a_corpus_that_teaches_nothing_is_refused(corpus, content, message):
    corpus.write_bytes(content)
    settings = PolicySettings(config={"model_type": "qwen2"}, tokenizer=NewTokenizerSettings(str(corpus), "bpe"))
    with pytest.raises(ConfigurationError, match=message):
        load_tokenizer(settings)


def test_a_corpus_with_a_byte_order_mark_and_crlf_teaches_the_same(corpus):
    settings = PolicySettings(config={"model_type": "qwen2"}, tokenizer=NewTokenizerSettings(str(corpus), "bpe", 300))
    plain = load_tokenizer(settings).get_vocab()
    corpus.write_bytes(b"\xef\xbb\xbf" + corpus.read_bytes().replace(b"\n", b"\r\n"))
    assert load_tokenizer(settings).get_vocab() == plain


def test_a_word_without_end_is_learned_in_pieces(corpus):
    """As a whole it would take hours, for the time grows with the square of its length."""
    corpus.write_text(json.dumps({"problem": "a1b2" * 500 + " end"}))
    assert list(_texts(corpus)) == ["a1b2" * 250 + " " + "a1b2" * 250 + "  end"]
