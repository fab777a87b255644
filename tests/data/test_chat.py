"""What is asked of a chat template: thoughts, the end of a turn, its own system prompt, its errors."""

import pytest

from app.data.chat import DEFAULT_DATE, ChatTemplate
from app.errors import ConfigurationError
from app.policy.models import end_token_ids
from tests.data import templates
from tests.data.tokenizers import LLAMA, subword_tokenizer


def chat(template: str, **changes: object) -> ChatTemplate:
    return ChatTemplate(subword_tokenizer(template), **changes)  # type: ignore[arg-type]


def turn(role: str = "user", content: str = "1 + 1") -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_thought_that_the_template_opens_is_known() -> None:
    assert chat(templates.OPENS_A_THOUGHT).thinking.opened == "<think>"
    assert chat(templates.BASE_CHAT).thinking.opened == ""
    assert chat(LLAMA).thinking.opened == ""


def test_an_argument_of_the_template_closes_the_thought() -> None:
    assert chat(templates.MAY_THINK).thinking.opened == "<think>"
    assert chat(templates.MAY_THINK, arguments={"enable_thinking": False}).thinking.opened == ""


def test_markers_are_taken_from_a_thought_that_the_template_renders() -> None:
    thinking = chat(templates.REASONING).thinking
    assert thinking.opened == "<muse>"
    assert thinking.read(r"\boxed{1}</muse>\boxed{2}").visible == r"\boxed{2}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (templates.BASE_CHAT, ["<|im_end|>"]),
        (LLAMA, ["<|eot|>"]),
        (templates.TWO_TOKEN_END, ["Ċ", "<|eot|>"]),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", []),
        ("{% for m in messages %}{{ m['content'] }}{{ eos_token }}<|start|>{% endfor %}", ["</s>"]),
        ("{{ messages[0]['content'] }}{{ raise_exception('no') if messages[1] }}", []),
    ],
)
def test_the_end_of_a_turn_is_found_by_rendering_one(template: str, end: list[str]) -> None:
    tokenizer = subword_tokenizer(template)
    assert tokenizer.convert_ids_to_tokens(ChatTemplate(tokenizer).turn_end) == end
    own = {tokenizer.eos_token_id} | ({tokenizer.convert_tokens_to_ids(end[-1])} if end else set())
    assert end_token_ids(tokenizer) == tuple(sorted(own))


def test_end_tokens_can_be_named() -> None:
    tokenizer = subword_tokenizer(templates.BASE_CHAT)
    assert end_token_ids(tokenizer, wanted=("<|eot|>", 1)) == tuple(
        sorted((1, tokenizer.convert_tokens_to_ids("<|eot|>")))
    )
    for unknown in ("<|eod|>", 99_999):
        with pytest.raises(ConfigurationError, match=r"policy\.end_tokens: the tokenizer has no token"):
            end_token_ids(tokenizer, wanted=(unknown,))


def test_a_default_system_prompt_is_found() -> None:
    assert chat(templates.DEFAULT_SYSTEM).default_system == "You are kind."
    assert chat(templates.OBSTINATE_SYSTEM).default_system == "You are kind."
    assert chat(templates.BASE_CHAT).default_system == ""


def test_today_is_the_same_on_any_day() -> None:
    assert DEFAULT_DATE == "2024-07-26"
    assert chat(templates.DATED).render([turn()]).startswith("26 Jul 2024 \n")
    assert chat(templates.DATED, today="2031-01-05").render([turn()]).startswith("05 Jan 2031 \n")
    assert chat(templates.DATED, arguments={"today": "it rains"}).render([turn()]).startswith("26 Jul 2024 it rains\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (templates.NEEDS_TOOLS, r"fails \(TypeError: 'NoneType' object is not iterable\); a variable .*arguments"),
        ("{{ functions.upper() }}", r"fails \(UndefinedError: 'functions' is undefined\)"),
        ("{{ 1 / 0 }}", r"fails \(ZeroDivisionError"),
        ("{% for %}", r"fails \(TemplateSyntaxError"),
        ("{{ raise_exception('Only\n two') }}", "refuses the messages: Only two"),
    ],
)
def test_a_template_that_fails_says_so_in_one_line(template: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        chat(template).render([turn()])
    assert "\n" not in str(caught.value)


def test_one_of_several_templates_is_chosen_by_name() -> None:
    tokenizer = subword_tokenizer(None)
    tokenizer.chat_template = {"tools": templates.NEEDS_TOOLS, "plain": templates.BASE_CHAT}
    try:
        with pytest.raises(ConfigurationError, match="no chat template named 'default', but those named plain, tools"):
            ChatTemplate(tokenizer)
        assert "1 + 1" in ChatTemplate(tokenizer, name="plain").render([turn()])
        assert end_token_ids(tokenizer) == (1,)
    finally:
        tokenizer.chat_template = None
    with pytest.raises(ConfigurationError, match="named 'rag', but one without a name"):
        ChatTemplate(subword_tokenizer(templates.BASE_CHAT), name="rag")
