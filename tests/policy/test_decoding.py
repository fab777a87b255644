"""From ids to text in which no token vanishes."""

import pytest

from app.grading.answers import extract_answer
from app.grading.matching import judge
from app.policy.decoding import count_unknown, decode_completions, token_texts, unknown_token_ids
from tests.data.tokenizers import CHATML, subword_tokenizer

TOKENIZER = subword_tokenizer(CHATML)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
OTHER = TOKENIZER.convert_tokens_to_ids("<|start|>")
BEYOND = len(TOKENIZER) + 7


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


@pytest.mark.parametrize("between", [OTHER, BEYOND])
def test_a_token_that_decoders_leave_out_stands_in_the_text(between: int) -> None:
    rows = [[*ids(r"\boxed{4"), between, *ids("2}"), END], [*ids(r"\boxed{"), between, *ids("2}")]]
    assert extract_answer(TOKENIZER.decode(rows[0], skip_special_tokens=True)) == "42"  # what it would be taken for
    texts = decode_completions(TOKENIZER, rows, (END,))
    mark = "<|start|>" if between == OTHER else f"<|unknown:{BEYOND}|>"
    assert texts == [rf"\boxed{{4{mark}2}}", rf"\boxed{{{mark}2}}"]
    for text, gold in zip(texts, ("42", "2"), strict=True):
        assert judge(gold, extract_answer(text), {}) == "mismatch"


def test_the_token_that_ended_a_completion_is_left_out_and_no_other() -> None:
    rows = [[*ids("5"), END], [*ids("5"), OTHER], ids("5"), [END], []]
    assert decode_completions(TOKENIZER, rows, (END,)) == ["5", "5<|start|>", "5", "", ""]


def test_unknown_ids_are_found_behind_and_within_the_vocabulary() -> None:
    from transformers import PreTrainedTokenizerFast

    backend = subword_tokenizer().backend_tokenizer.from_str(
        '{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,'
        '"post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"a":0,"b":3},"unk_token":"a"}}'
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert unknown_token_ids(tokenizer, 6) == (1, 2, 4, 5)
    assert decode_completions(tokenizer, [[0, 1, 3, 5]], ()) == ["a<|unknown:1|>b<|unknown:5|>"]
    assert count_unknown(tokenizer, [[0, 1, 3, 5], [3]]) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "So 3+4 = 7.\n\n\\boxed{7}",
        " leading and trailing ",
        "naïve 😀 ∑∫ 漢字",
        "e\u0301\u200d👩\u200d👩\u200d👧",
        "\t\r\n a",
    ],
)
def test_the_texts_of_tokens_put_together_are_the_text(text: str) -> None:
    row = [*ids(text), OTHER, *ids(text)]
    pieces = token_texts(TOKENIZER, row)
    assert len(pieces) == len(row)
    assert "".join(pieces) == f"{text}<|start|>{text}"
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_of_a_character_show_at_its_last_and_broken_ones_do_not_swallow_what_follows() -> None:
    emoji = ids("😀")
    assert len(emoji) == 4
    assert token_texts(TOKENIZER, emoji) == ["", "", "", "😀"]
    pieces = token_texts(TOKENIZER, [*emoji[:2], BEYOND, *emoji[:3], *ids("x y"), emoji[0]])
    assert pieces[2] == f"<|unknown:{BEYOND}|>"
    assert "".join(pieces).endswith("x y\ufffd")
    broken = token_texts(TOKENIZER, [emoji[1]] * 9 + ids("z"))
    assert "".join(broken) == TOKENIZER.decode([emoji[1]] * 9) + "z"


def test_the_space_that_a_tokenizer_strips_from_the_beginning_of_a_text_stays_between_its_tokens() -> None:
    from app.data.synthetic import build_tokenizer

    tokenizer = build_tokenizer()
    row = tokenizer("Tom has 25 apples . finds 3 . how many ?")["input_ids"]
    assert "".join(token_texts(tokenizer, row)) == tokenizer.decode(row, skip_special_tokens=False)
