"""From rows to problems: columns, answer formats, malformed rows."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.rows import ANSWER_READERS, MalformedRowError, RowSettings, nearest, read_row
from app.errors import ConfigurationError


def read(row: Any, **changes: Any) -> Any:
    return read_row(row, 7, "set", RowSettings(**changes))


@pytest.mark.parametrize(
    ("answer_format", "raw", "expected"),
    [
        ("plain", " \\frac12 ", "\\frac12"),
        ("integer", "025", "25"),
        ("integer", "27.0", "27"),
        ("integer", 27.0, "27"),
        ("integer", 27, "27"),
        ("integer", "000", "0"),
        ("integer", "-007", "-7"),
        ("integer", "+7.", "7"),
        ("integer", 0.5, "0.5"),
        ("integer", "2.5", "2.5"),
        ("integer", "\\sqrt{2}", "\\sqrt{2}"),
        ("after_hashes", "She sold 48/2 = 24.\n#### 1,234,567", "1234567"),
        ("after_hashes", "#### 5 #### -6", "-6"),
        ("after_hashes", "so (1, 2)\n#### (1, 2)", "(1, 2)"),
        ("last_box", "first \\boxed{1}, then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("last_box", "\\boxed{1}, no: $\\boxed 2$.", "2"),
        ("list", ["2", " 3 "], "2, 3"),
        ("list", "2", "2"),
        ("list", '["34"]', "34"),  # a list of strings as JSON text
        ("list", ' ["1", "\\\\frac{1}{2}"]', "1, \\frac{1}{2}"),
        ("list", "[1, 2]", "[1, 2]"),
        ("list", "[1, 2)", "[1, 2)"),
        ("integer", 2.0**53, str(2**53)),
        ("integer", 2**60 + 1, str(2**60 + 1)),
    ],
)
def test_answer_formats(answer_format: str, raw: Any, expected: str) -> None:
    assert read({"problem": "p", "answer": raw}, answer_format=answer_format).answer == expected


@given(number=st.integers(-(10**30), 10**30), zeros=st.integers(0, 5), tail=st.sampled_from(["", ".", ".0", ".000"]))
@settings(derandomize=True, max_examples=100)
def test_integers_lose_their_ornaments_and_keep_their_value(number: int, zeros: int, tail: str) -> None:
    spelled = ("-" if number < 0 else "") + "0" * zeros + str(abs(number)) + tail
    assert ANSWER_READERS["integer"](spelled) == str(number)


@pytest.mark.parametrize(
    ("row", "changes", "reason"),
    [
        ([1], {}, "is not an object but list"),
        ({"answer": "1"}, {}, "the problem is missing"),
        ({"problem": "p"}, {}, "the answer is missing"),
        ({"problem": "p", "answer": None}, {}, "the answer is missing"),
        ({"problem": None, "answer": "1"}, {}, "the problem is missing"),
        ({"problem": "p", "answer": 5}, {}, "the answer is not a string but int"),
        ({"problem": "p", "answer": True}, {"answer_format": "integer"}, "the answer is not a string but bool"),
        ({"problem": ["p"], "answer": "5"}, {}, "the problem is not a string but list"),
        ({"problem": " \n", "answer": "5"}, {}, "the problem is empty"),
        ({"problem": "p", "answer": ""}, {}, "the answer is empty"),
        (
            {"problem": "pppp", "answer": "5"},
            {"max_characters": 3},
            "the problem has 4 characters, over the limit of 3",
        ),
        ({"problem": "p\ud800", "answer": "5"}, {}, "wrongly encoded"),
        ({"problem": "caf\ufffd", "answer": "5"}, {}, "wrongly encoded"),
        ({"problem": "p", "answer": "72"}, {"answer_format": "after_hashes"}, "holds no '####'"),
        ({"problem": "p", "answer": "#### "}, {"answer_format": "after_hashes"}, "the answer is empty"),
        ({"problem": "p", "answer": "72"}, {"answer_format": "last_box"}, "holds no \\boxed{}"),
        ({"problem": "p", "answer": "\\boxed{7"}, {"answer_format": "last_box"}, "never closed"),
        ({"problem": "p", "answer": ["1", 2]}, {"answer_format": "list"}, "not a string but list"),
        ({"problem": "p", "answer": 1.2345678901234567e19}, {"answer_format": "integer"}, "read as a float"),
        ({"problem": "p", "answer": datetime(2020, 1, 2)}, {}, "not a string but datetime (datasets reads"),
    ],
)
def test_malformed_rows_say_why(row: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MalformedRowError) as caught:
        read(row, **changes)
    assert reason in str(caught.value)


def test_columns_reach_into_structures_and_the_rest_is_kept() -> None:
    row = {"prompt": [{"content": "2 + 2 ?"}], "reward_model": {"ground_truth": "4"}, "uid": 17, "level": "Level 1"}
    columns = {
        "problem": "prompt.0.content",
        "answer": "reward_model.ground_truth",
        "id": "uid",
        "truth": "reward_model",
    }
    problem = read(row, columns=columns)
    assert (problem.problem, problem.answer, problem.id, problem.source) == ("2 + 2 ?", "4", "17", "set")
    assert problem.extra["level"] == "Level 1"
    assert problem.extra["truth"] == {"ground_truth": "4"}


def test_one_column_may_serve_twice() -> None:
    row = {"question": "q", "answer": "worked out\n#### 3"}
    columns = {"problem": "question", "solution": "answer"}
    problem = read(row, columns=columns, answer_format="after_hashes")
    assert problem.answer == "3"
    assert problem.extra == {"solution": "worked out\n#### 3"}


def test_rows_without_gold_answers_are_read_by_option() -> None:
    problem = read_row({"problem": " p ", "level": 1}, 1, "s", RowSettings(answer_format="none"))
    assert (problem.problem, problem.answer, problem.extra) == ("p", "", {"level": 1})
    with pytest.raises(MalformedRowError, match="the answer is missing"):
        read_row({"problem": "p"}, 1, "s", RowSettings())


def test_a_row_without_an_id_is_called_by_its_number_or_its_text() -> None:
    row = {"problem": "p", "answer": "1"}
    assert read(row).id == "set-7"
    unnumbered = read_row(row, None, "set", RowSettings()).id
    assert unnumbered == read_row(dict(row), None, "set", RowSettings()).id
    assert unnumbered != read_row({**row, "problem": "r"}, None, "set", RowSettings()).id


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"answer_format": "hashes"}, "answer_format"),
        ({"malformed": "drop"}, "malformed"),
        ({"max_characters": 0}, "max_c"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError, match=key):
        RowSettings(**changes)


def test_the_nearest_name_is_offered() -> None:
    assert nearest("quesion", ["answer", "question"]) == "did you mean 'question'? There are: answer, question"
    assert nearest("zzz", ["answer"]) == "there are: answer"
    assert nearest("zzz", []) == "there are: none"


CONVERSATION = [
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": "2 + 2 ?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3 ?"},
]


def test_a_problem_may_be_a_conversation() -> None:
    settings = RowSettings(columns={"problem": "prompt"})
    problem = read_row({"prompt": CONVERSATION, "answer": "6"}, 1, "set", settings)
    assert problem.problem == "And 3 + 3 ?"
    assert problem.history == (("system", "Be exact."), ("user", "2 + 2 ?"), ("assistant", "4"))
    assert read_row({"prompt": CONVERSATION[1:2], "answer": "4"}, 1, "set", settings).history == ()


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (CONVERSATION[:3], "the last turn of its problem is the assistant's"),
        ([], "the problem is not a string but list"),
        ([CONVERSATION[1], "2 + 2 ?"], "turn 2 of its problem has no role and content"),
        ([{"role": "user", "content": [{"type": "text", "text": "2 + 2 ?"}]}], "turn 1 of its problem has no role"),
        ([{"role": "system", "content": "\ud800"}, CONVERSATION[1]], "a turn before its problem is wrongly encoded"),
    ],
)
def test_a_conversation_that_asks_nothing_is_malformed(turns: list[object], message: str) -> None:
    with pytest.raises(MalformedRowError, match=message):
        read_row({"prompt": turns, "answer": "6"}, 1, "set", RowSettings(columns={"problem": "prompt"}))


def test_a_system_turn_is_no_problem() -> None:
    """Rows of one file may begin with it or not: a column by number takes what stands there."""
    settings = RowSettings(columns={"problem": "prompt.0.content"})
    assert read_row({"prompt": CONVERSATION[1:2], "answer": "4"}, 1, "set", settings).problem == "2 + 2 ?"
    with pytest.raises(MalformedRowError, match=r"prompt\.0\.content is the system's turn.*\{problem: prompt\}"):
        read_row({"prompt": CONVERSATION, "answer": "6"}, 1, "set", settings)
