"""Prompt styles, chat templates, own templates, overlong prompts."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data import synthetic
from app.data.problems import Problem
from app.data.prompts import STYLES, PromptEncoder, PromptSettings
from app.errors import ConfigurationError
from tests.data import templates
from tests.data.tokenizers import CHATML, LLAMA, WITHOUT_SYSTEM, subword_tokenizer

STATEMENT = "What is {12} + 7 ?"
ASK = "Please reason step by step, and put your final answer within \\boxed{}."


def problem(statement: str) -> Problem:
    return Problem(id="p", problem=statement, answer="1", source="set")


def shown(chat_template: str | None = None, adds_bos: bool = False, **changes: Any) -> str:
    """The prompt's text as it stands in the ids, special tokens included."""
    tokenizer = subword_tokenizer(chat_template, adds_bos)
    encoder = PromptEncoder(PromptSettings(**changes), tokenizer)
    text: str = tokenizer.decode(encoder.ids(STATEMENT))
    return text


def test_plain_styles_need_no_chat_template() -> None:
    assert shown() == STATEMENT
    assert shown(style="boxed") == f"Question: {STATEMENT}\n{ASK}\nAnswer:"
    r1 = shown(style="r1")
    assert r1.endswith(f"\nUser: {STATEMENT}\nAssistant:")
    assert "<think> reasoning </think> <answer> answer </answer>" in r1
    assert "\\boxed{}" in r1


def test_qwen_math_puts_its_request_into_the_system_turn() -> None:
    turns = f"<|im_start|>system\n{ASK}<|im_end|>\n<|im_start|>user\n{STATEMENT}<|im_end|>\n<|im_start|>assistant\n"
    assert shown(CHATML, style="qwen_math") == turns


def test_llama_puts_its_request_into_the_user_turn() -> None:
    text = shown(LLAMA, style="llama")
    assert text.startswith("<s><|start|>user<|end|>\n\nSolve the following math problem")
    assert text.endswith(f"Problem: {STATEMENT}<|eot|><|start|>assistant<|end|>\n\n")


def test_there_is_exactly_one_begin_token() -> None:
    tokenizer = subword_tokenizer(LLAMA, True)
    for style, chat in (("raw", "never"), ("boxed", None), ("raw", "always"), ("llama", None)):
        ids = PromptEncoder(PromptSettings(style=style, chat=chat), tokenizer).ids(STATEMENT)  # type: ignore[arg-type]
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_raw_is_a_chat_where_the_tokenizer_knows_chats() -> None:
    assert shown(CHATML) == f"<|im_start|>user\n{STATEMENT}<|im_end|>\n<|im_start|>assistant\n"
    assert shown(CHATML, chat="never") == STATEMENT
    encoder = PromptEncoder(PromptSettings(), synthetic.build_tokenizer())
    text = synthetic.problem(0, 0).problem
    assert encoder.tokenizer.decode(encoder.ids(text)) == f"<user>{text}<assistant>"
    assert encoder.text(text) == f"<user>{text}<assistant>"


def test_the_system_prompt_can_be_replaced_added_and_left_out() -> None:
    assert shown(CHATML, system_prompt="Be brief.").startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
    )
    assert shown(CHATML, style="qwen_math", system_prompt="Be brief.").count("system") == 1
    assert "system" not in shown(CHATML, style="qwen_math", system_prompt="")
    assert shown(system_prompt="Be brief.") == f"Be brief.\n\n{STATEMENT}"


def test_an_own_template_replaces_the_style(tmp_path: Path) -> None:
    path = tmp_path / "template.txt"
    path.write_text("Solve $\\frac{1}{2}$-style:\n{problem}\nResult:\n", encoding="utf-8")
    changes = {"template_file": str(path), "style": "qwen_math"}
    assert shown(**changes) == f"Solve $\\frac{{1}}{{2}}$-style:\n{STATEMENT}\nResult:\n"
    assert shown(CHATML, **changes).startswith("<|im_start|>user\nSolve")
    assert shown(CHATML, chat="never", **changes).startswith("Solve")


@pytest.mark.parametrize("text", [b"no placeholder", b"{problem} {problem}", b"caf\xe9 {problem}"])
def test_bad_templates_are_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "template.txt"
    path.write_bytes(text)
    with pytest.raises(ConfigurationError, match=r"prompt\.template_file: .*template\.txt"):
        PromptSettings(template_file=str(path))
    with pytest.raises(ConfigurationError, match="there is no file"):
        PromptSettings(template_file=str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style": "qwen"}, r"prompt\.style: unknown style 'qwen'; did you mean 'qwen_math'"),
        ({"chat": "maybe"}, r"prompt\.chat"),
        ({"overlong": "cut"}, r"prompt\.overlong"),
        ({"max_prompt_tokens": 0}, r"prompt\.max_prompt_tokens"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PromptSettings(**changes)


@pytest.mark.parametrize("changes", [{"style": "qwen_math"}, {"style": "llama"}, {"chat": "always"}])
def test_a_tokenizer_without_chat_template_is_refused_where_one_is_needed(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"prompt\.chat: the tokenizer has no chat template"):
        shown(**changes)


def test_a_chat_template_that_hides_or_refuses_the_system_prompt_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"prompt\.system_prompt: .* shows no system prompt"):
        shown(WITHOUT_SYSTEM, style="qwen_math")
    with pytest.raises(ConfigurationError, match="refuses the messages: only the roles"):
        PromptEncoder(PromptSettings(system_prompt="Be kind."), synthetic.build_tokenizer())


def test_overlong_prompts_are_seen_and_refused() -> None:
    encoder = PromptEncoder(PromptSettings(max_prompt_tokens=30), subword_tokenizer())
    short, long = problem("What is 12 ?"), problem("What is " + "12 + " * 40)
    assert not encoder.is_overlong(short)
    assert encoder.is_overlong(long)
    assert encoder.encode([short]) == [encoder.ids(short.problem)]
    with pytest.raises(ConfigurationError, match=r"the prompt of set p has \d+ tokens, over 30"):
        encoder.encode([short, long])
    assert not PromptEncoder(PromptSettings(), subword_tokenizer()).is_overlong(long)


@given(statement=st.text(max_size=60), limit=st.integers(24, 60))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_truncation_cuts_the_statement_and_nothing_else(statement: str, limit: int) -> None:
    tokenizer = subword_tokenizer(CHATML)
    encoder = PromptEncoder(PromptSettings(max_prompt_tokens=limit, overlong="truncate"), tokenizer)
    (ids,) = encoder.encode([problem(statement)])
    assert len(ids) <= limit
    text = tokenizer.decode(ids)
    assert text.startswith("<|im_start|>user\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    kept = text.removeprefix("<|im_start|>user\n").removesuffix("<|im_end|>\n<|im_start|>assistant\n")
    assert statement.startswith(kept.rstrip("\ufffd"))
    if len(encoder.ids(statement)) <= limit:
        assert ids == encoder.ids(statement)


def test_a_limit_below_the_template_is_refused() -> None:
    encoder = PromptEncoder(PromptSettings(style="r1", max_prompt_tokens=8, overlong="truncate"), subword_tokenizer())
    with pytest.raises(ConfigurationError, match="tokens without any problem, over 8"):
        encoder.encode([problem("What is 12 ?")])


@pytest.mark.parametrize("chat", [None, CHATML])
def test_a_prompt_without_room_in_the_context_is_named_whatever_the_limit(chat: str | None) -> None:
    encoder = PromptEncoder(PromptSettings(), subword_tokenizer(chat), context=60)
    short, long = problem("What is 12 ?"), problem("What is " + "12 + " * 40)
    assert encoder.encode([short]) == [encoder.ids(short.problem)]
    encoder.check_context([short], place=lambda each: each.id)
    with pytest.raises(ConfigurationError, match=r"the prompt of set p has \d+ tokens, .* context of 60"):
        encoder.encode([long])
    with pytest.raises(ConfigurationError, match=r"the prompt of row 7 has \d+ tokens"):
        encoder.check_context([short, long], place=lambda each: "row 7")
    PromptEncoder(PromptSettings(), subword_tokenizer(chat)).check_context([long], place=lambda each: each.id)


@given(statement=st.text(max_size=80))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_what_is_not_tokenised_does_fit(statement: str) -> None:
    """The check passes over short texts by their bytes alone."""
    plain = PromptEncoder(PromptSettings(), subword_tokenizer(CHATML))
    length = len(plain.ids(statement))
    exact = PromptEncoder(PromptSettings(), subword_tokenizer(CHATML), context=length)
    with pytest.raises(ConfigurationError, match="no room"):
        exact.check_context([problem(statement)], place=lambda each: each.id)
    roomy = PromptEncoder(PromptSettings(), subword_tokenizer(CHATML), context=length + 1)
    roomy.check_context([problem(statement)], place=lambda each: each.id)


def test_nothing_encodes_to_nothing() -> None:
    assert PromptEncoder(PromptSettings(), subword_tokenizer()).encode([]) == []


def test_every_style_asks_for_a_box_or_for_nothing() -> None:
    for name, style in STYLES.items():
        request = style.template + (style.system or "")
        assert name == "raw" or "\\boxed{" in request
        assert style.template.count("{problem}") == 1


def test_a_template_with_the_chat_markup_in_it_is_the_whole_prompt() -> None:
    own = "<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"
    assert shown(CHATML, template=own) == shown(CHATML, template=own, chat="never") == own.format(problem=STATEMENT)
    with pytest.raises(ConfigurationError, match=r"prompt\.chat: the template holds <\|im_(start|end)\|>, chat markup"):
        shown(CHATML, template=own, chat="always")
    assert shown(CHATML, template="Of <|eot|> tokens: {problem}").startswith("<|im_start|>user\nOf <|eot|>")


def test_a_template_that_begins_with_the_begin_token_gets_no_second_one_and_no_end_token() -> None:
    from tokenizers import processors

    assert shown(adds_bos=True, template="<s>Q: {problem}") == f"<s>Q: {STATEMENT}"
    tokenizer = subword_tokenizer(None, True)
    whole = tokenizer.backend_tokenizer.post_processor
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    try:
        ids = PromptEncoder(PromptSettings(), tokenizer).ids(STATEMENT)
    finally:
        tokenizer.backend_tokenizer.post_processor = whole
    assert tokenizer.decode(ids) == f"<s>{STATEMENT}"


def test_an_empty_system_prompt_leaves_that_of_the_template_out() -> None:
    assert "You are kind." in shown(templates.DEFAULT_SYSTEM)
    left_out = shown(templates.DEFAULT_SYSTEM, system_prompt="")
    assert left_out.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")
    assert shown(templates.BASE_CHAT, system_prompt="").startswith("<|im_start|>user")
    with pytest.raises(ConfigurationError, match=r"prompt\.system_prompt: .*own \('You are kind\.'\)"):
        shown(templates.OBSTINATE_SYSTEM, system_prompt="")


def test_a_template_may_trim_the_system_prompt() -> None:
    assert "system\nBe brief.<|im_end|>" in shown(templates.BASE_CHAT, system_prompt="Be brief.\n")


def test_arguments_and_date_reach_the_template() -> None:
    assert shown(templates.MAY_THINK, template_arguments={"enable_thinking": False}).endswith("</think>\n")
    assert shown(templates.DATED, date="2030-12-31").startswith("31 Dec 2030")
    with pytest.raises(ConfigurationError, match=r"prompt\.date: is a day as YYYY-MM-DD, got 'today'"):
        PromptSettings(date="today")


def test_a_conversation_is_a_prompt() -> None:
    history = (("system", "Be exact."), ("user", "2 + 2 ?"), ("assistant", "4"))
    tokenizer = subword_tokenizer(CHATML)
    encoder = PromptEncoder(PromptSettings(style="qwen_math"), tokenizer)
    (ids,) = encoder.encode([Problem("p", "And 3 + 3 ?", "6", "set", history=history)])
    turns = [*history, ("user", "And 3 + 3 ?")]
    assert tokenizer.decode(ids) == (
        "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns) + "<|im_start|>assistant\n"
    )
    (ids,) = encoder.encode([Problem("p", "And 3 + 3 ?", "6", "set", history=history[1:])])
    assert tokenizer.decode(ids).startswith(f"<|im_start|>system\n{ASK}<|im_end|>\n<|im_start|>user\n2 + 2 ?")
    with pytest.raises(ConfigurationError, match=r"prompt\.chat: set p: .* needs a chat template"):
        PromptEncoder(PromptSettings(style="boxed"), tokenizer).encode(
            [Problem("p", "And ?", "6", "set", history=history)]
        )
