"""Supervised examples: what is in a batch, and where the loss is."""

from typing import Any

import pytest
import torch

from app.data import synthetic
from app.data.problems import Problem
from app.data.prompts import PromptEncoder, PromptSettings
from app.data.sft import IGNORED, ExampleEncoder, collate
from app.data.sources import SyntheticSource
from app.errors import ConfigurationError
from tests.data import templates
from tests.data.tokenizers import subword_tokenizer


def encoder(tokenizer: Any = None, **changes: Any) -> ExampleEncoder:
    return ExampleEncoder(PromptEncoder(PromptSettings(), tokenizer or synthetic.build_tokenizer()), **changes)


def example(**extra: Any) -> Problem:
    return Problem(id="p", problem="how many ?", answer="7", source="set", extra=extra)


def test_labels_stand_on_the_completion_and_its_end_token_alone() -> None:
    problems = SyntheticSource(size=5, demonstrations=True).problems()
    made = encoder()
    batch = made.batch(problems, step=3)
    assert batch.step == 3
    assert batch.input_ids.shape == batch.labels.shape == batch.attention_mask.shape
    for row, problem in enumerate(problems):
        length = int(batch.attention_mask[row].sum())
        assert batch.attention_mask[row].tolist() == [1] * length + [0] * (batch.input_ids.shape[1] - length)
        text = made.tokenizer.decode(batch.input_ids[row, :length])
        assert text == f"<user>{problem.problem}<assistant>{problem.extra['solution']}<eos>"
        taught = batch.labels[row] != IGNORED
        assert made.tokenizer.decode(batch.labels[row][taught]) == f"{problem.extra['solution']}<eos>"
        assert torch.equal(batch.labels[row][taught], batch.input_ids[row][taught])
        assert not taught[length:].any()
        assert (batch.input_ids[row, length:] == made.tokenizer.pad_token_id).all()


def test_collate_pads_on_the_right() -> None:
    batch = collate([([1, 2], [3]), ([4], [5, 6, 7])], padding_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 9], [4, 5, 6, 7]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [[-100, -100, 3, -100], [-100, 5, 6, 7]]
    assert {batch.input_ids.dtype, batch.labels.dtype, batch.attention_mask.dtype} == {torch.int64}


def test_moving_keeps_everything() -> None:
    batch = collate([([1], [2])], padding_id=0, step=5).to(torch.device("meta"))
    assert {batch.input_ids.device.type, batch.labels.device.type, batch.attention_mask.device.type} == {"meta"}
    assert batch.step == 5


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{solution}", "so {answer} it is"),
        ("{solution}\nTherefore \\boxed{{answer}}", "so {answer} it is\nTherefore \\boxed{7}"),
        ("\\boxed{{answer}}", "\\boxed{7}"),
    ],
)
def test_completion_templates(template: str, expected: str) -> None:
    made = encoder(completion_template=template)
    assert made.completion(example(solution="so {answer} it is")) == expected


def test_another_column_can_hold_the_solution() -> None:
    assert encoder(solution_column="proof").completion(example(proof="clear")) == "clear"


@pytest.mark.parametrize("extra", [{}, {"solution": None}, {"solution": ["a"]}])
def test_a_missing_solution_is_named(extra: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="solution_column: set p has no text in its column 'solution'"):
        encoder().ids(example(**extra))


def test_a_missing_answer_is_named_where_the_template_has_one() -> None:
    unanswered = Problem(id="p", problem="how many ?", answer="", source="set", extra={"solution": "so"})
    assert encoder().completion(unanswered) == "so"
    with pytest.raises(ConfigurationError, match="completion_template: set p has no"):
        encoder(completion_template="{solution} {answer}").completion(unanswered)


def test_a_template_without_a_placeholder_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="completion_template"):
        encoder(completion_template="42")


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = synthetic.build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigurationError, match="no end token"):
        encoder(tokenizer)


def test_overlong_examples_are_seen() -> None:
    text = example(solution="\\boxed{7}")
    assert [len(ids) for ids in encoder().ids(text)] == [5, 4]
    assert not encoder(max_tokens=9).is_overlong(text)
    assert encoder(max_tokens=8).is_overlong(text)
    assert not encoder().is_overlong(text)


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token() -> None:
    tokenizer = subword_tokenizer()
    assert tokenizer.pad_token_id is None
    batch = encoder(tokenizer).batch([example(solution="a"), example(solution="a much longer one")])
    assert batch.input_ids[0, -1] == tokenizer.eos_token_id
    assert batch.attention_mask[0, -1] == 0
    assert batch.labels[0, -1] == IGNORED


@pytest.mark.parametrize(
    ("template", "prompt", "end"),
    [
        (templates.BASE_CHAT, {}, "<|im_end|>"),
        (templates.TWO_TOKEN_END, {}, "\n<|eot|>"),
        (templates.BASE_CHAT, {"chat": "never"}, "</s>"),
        (None, {}, "</s>"),
    ],
)
def test_the_end_that_is_taught_is_the_one_that_the_template_writes(
    template: str | None, prompt: dict[str, Any], end: str
) -> None:
    tokenizer = subword_tokenizer(template)
    made = ExampleEncoder(PromptEncoder(PromptSettings(**prompt), tokenizer), "{answer}")
    _, completion = made.ids(example())
    assert tokenizer.decode(completion) == f"7{end}"
