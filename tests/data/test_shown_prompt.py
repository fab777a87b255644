"""A prompt to be looked at."""

from app.data.prompts import PromptEncoder, PromptSettings
from app.data.shown_prompt import SHOWN_TOKENS, show_example, show_prompt
from tests.data import templates
from tests.data.tokenizers import subword_tokenizer


def test_text_tokens_ends_and_the_open_thought_are_shown() -> None:
    tokenizer = subword_tokenizer(templates.OPENS_A_THOUGHT)
    encoder = PromptEncoder(PromptSettings(), tokenizer)
    ids = encoder.ids("½ + ½")
    shown = show_prompt(ids, tokenizer, (1, tokenizer.convert_tokens_to_ids("<|im_end|>")), encoder.thinking)
    assert shown.text == "<|im_start|>user\n½ + ½<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert shown.token_ids == ids
    assert shown.tokens[0] == "<|im_start|>"
    assert not any("\ufffd" in token for token in shown.tokens)  # ½ is two tokens, of which neither is a character
    lines = str(shown).splitlines()
    assert len(lines) == 3
    assert repr(shown.text) in lines[0]
    assert lines[1].split()[:2] == [str(len(ids)), "tokens"]
    assert lines[2].endswith("begin within the thought that '<think>' opened, end with '</s>' or '<|im_end|>'")


def test_the_middle_of_a_long_prompt_is_not_listed() -> None:
    tokenizer = subword_tokenizer()
    encoder = PromptEncoder(PromptSettings(), tokenizer)
    shown = show_prompt(encoder.ids("0123456789" * 20), tokenizer, (1,), encoder.thinking)
    assert len(shown.tokens) == 180
    assert f"… {180 - 2 * SHOWN_TOKENS} more …" in shown.rows()[1][1]
    assert shown.rows()[2][1] == "begin outside thoughts, end with '</s>'"


def test_an_example_is_shown_as_prompt_and_target() -> None:
    tokenizer = subword_tokenizer()
    prompt, target = (tokenizer(text, add_special_tokens=False).input_ids for text in ("1 + ½", "2" * 100))
    lines = str(show_example(prompt, [*target, 1], tokenizer)).splitlines()
    assert [line.split()[0] for line in lines] == ["prompt", str(len(prompt)), "target", str(len(target) + 1)]
    assert lines[0].endswith(repr("1 + ½"))
    assert lines[2].endswith(repr("2" * 100 + "</s>"))
    assert lines[3].endswith(f"… {len(target) + 1 - 2 * SHOWN_TOKENS} more … " + "'2' " * (SHOWN_TOKENS - 1) + "'</s>'")
