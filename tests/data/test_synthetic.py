"""The synthetic task: what it asks, what it shows, how it is tokenised."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data import synthetic

PROBLEMS = [synthetic.problem(0, index) for index in range(3000)]


def recount(text: str) -> int:
    """The answer, worked out from the words without the module's own parser."""
    words = text.split()
    quantity = int(words[2])
    for verb, amount in re.findall(r"([a-z]+) (\d) \.", text):
        quantity += int(amount) if verb in {"finds", "buys", "gets", "earns", "wins", "picks"} else -int(amount)
    return quantity


def test_the_documented_example() -> None:
    text = "Tom has 25 apples . finds 3 . sells 4 . how many ?"
    assert synthetic.answer(text) == "24"
    assert synthetic.demonstration(text, seed=0) == "25+3=28;28-4=24;\\boxed{24}"


def test_answers_are_right_and_quantities_stay_in_range() -> None:
    for problem in PROBLEMS:
        assert problem.answer == str(recount(problem.problem))
        assert 0 <= int(problem.answer) <= 99


def test_every_choice_of_operators_stays_in_range() -> None:
    for problem in PROBLEMS:
        start = int(problem.problem.split()[2])
        reach = sum(int(amount) for amount in re.findall(r" (\d) \.", problem.problem))
        assert 0 <= start - reach <= start + reach <= 99


def test_problems_have_two_to_four_events_and_all_twelve_verbs() -> None:
    counts = [len(re.findall(r"[a-z]+ \d \.", problem.problem)) for problem in PROBLEMS]
    assert {count: counts.count(count) > 800 for count in set(counts)} == {2: True, 3: True, 4: True}
    verbs = {verb for problem in PROBLEMS for verb in re.findall(r"([a-z]+) \d \.", problem.problem)}
    assert verbs == set(synthetic.VERBS)
    assert len(verbs) == 12


def test_in_the_late_task_the_last_operator_alone_is_shown_unreliably() -> None:
    problems = [synthetic.problem(0, index, task="late") for index in range(1500)]
    verbs = [re.findall(r"([a-z]+) \d \.", problem.problem) for problem in problems]
    assert {len(each) for each in verbs} == {2, 3, 4}
    assert {verb for each in verbs for verb in each[:-1]} == set(synthetic.SHOWN_VERBS)
    assert {each[-1] for each in verbs} == set(synthetic.DISCOVERED_VERBS)
    assert all(problem.answer == str(recount(problem.problem)) for problem in problems)
    right, places = {verb: [] for verb in synthetic.DISCOVERED_VERBS}, []
    for problem, own in zip(problems, verbs, strict=True):
        shown = synthetic.demonstration(problem.problem, seed=1, task="late")
        right[own[-1]].append(shown.endswith(f"{{{problem.answer}}}"))
        places.append(max(shown.rfind("+"), shown.rfind("-")) / len(shown))
        *steps, _ = re.findall(r"\d+([+-])\d+=", shown)
        assert steps == [synthetic.VERBS[verb] for verb in own[:-1]]
    shares = {verb: sum(each) / len(each) for verb, each in right.items()}
    assert {verb for verb, share in shares.items() if 0.25 < share < 0.42} == set(synthetic.MISLEADING_VERBS)
    assert sum(0.58 < share < 0.75 for share in shares.values()) == 3
    assert min(places) > 0.3  # what it decides has not been written in the first third
    assert sum(places) / len(places) > 0.5


def test_the_tasks_share_no_identifiers_and_obey_the_split() -> None:
    late = [synthetic.problem(3, index, "heldout", "late") for index in range(50)]
    spread = [synthetic.problem(3, index, "heldout") for index in range(50)]
    assert not {problem.id for problem in late} & {problem.id for problem in spread}
    assert all(synthetic.is_heldout(problem.problem) for problem in late)


@pytest.mark.parametrize("text", ["", "Tom has 25 apples .", "Tom has 25 apples . finds 3 . how many ? Really", "2+2"])
def test_other_texts_have_no_answer(text: str) -> None:
    with pytest.raises(ValueError, match="not a problem of the synthetic task"):
        synthetic.answer(text)


@given(seed=st.integers(0, 2**62), index=st.integers(0, 10**9))
@settings(derandomize=True, max_examples=100)
def test_a_problem_is_a_pure_function_and_its_split_depends_on_its_text_alone(seed: int, index: int) -> None:
    for split in ("train", "heldout"):
        problem = synthetic.problem(seed, index, split)
        assert problem == synthetic.problem(seed, index, split)
        assert synthetic.is_heldout(problem.problem) == (split == "heldout")


def test_about_a_tenth_is_held_out() -> None:
    # Without regard to the split, that is: seen from the first draw of each index.
    every = [synthetic.problem(seed, 0, "train").problem for seed in range(2000)]
    first = [synthetic.problem(seed, 0, "heldout").problem for seed in range(2000)]
    assert not set(every) & set(first)
    texts = {f"Tom has {start} apples . finds {a} . sells {b} . how many ?" for start in range(18, 82)
             for a in range(1, 10) for b in range(1, 10)}  # fmt: skip
    assert 0.08 < sum(map(synthetic.is_heldout, texts)) / len(texts) < 0.12


def test_demonstrations_always_calculate_correctly() -> None:
    for problem in PROBLEMS:
        *steps, boxed = synthetic.demonstration(problem.problem, seed=1).split(";")
        quantity = int(problem.problem.split()[2])
        for step in steps:
            left, operator, right, result = re.fullmatch(r"(\d+)([+-])(\d)=(\d+)", step).groups()  # type: ignore[union-attr]
            assert int(left) == quantity
            quantity = int(left) + int(right) if operator == "+" else int(left) - int(right)
            assert int(result) == quantity
        assert boxed == f"\\boxed{{{quantity}}}"


def test_operators_are_right_for_half_of_the_verbs_and_a_coin_for_the_others() -> None:
    right = dict.fromkeys(synthetic.VERBS, 0)
    shown = dict.fromkeys(synthetic.VERBS, 0)
    for problem in PROBLEMS:
        verbs = re.findall(r"([a-z]+) \d \.", problem.problem)
        operators = re.findall(r"\d([+-])\d", synthetic.demonstration(problem.problem, seed=2))
        for verb, operator in zip(verbs, operators, strict=True):
            shown[verb] += 1
            right[verb] += operator == synthetic.VERBS[verb]
    for verb, count in shown.items():
        expected = (1.0, 1.0) if verb in synthetic.SHOWN_VERBS else (0.43, 0.57)
        assert expected[0] <= right[verb] / count <= expected[1], verb


def test_demonstrations_solve_as_many_problems_as_documented() -> None:
    solved = [synthetic.demonstration(p.problem, seed=3).endswith(f"\\boxed{{{p.answer}}}") for p in PROBLEMS]
    assert 0.42 < sum(solved) / len(solved) < 0.48


def test_demonstrations_depend_on_their_seed() -> None:
    text = next(p.problem for p in PROBLEMS if len(re.findall("earns|wins|picks|lends|drops|breaks", p.problem)) == 4)
    assert len({synthetic.demonstration(text, seed) for seed in range(40)}) > 8


def test_the_tokenizer_is_exactly_invertible() -> None:
    tokenizer = synthetic.build_tokenizer()
    assert len(tokenizer) == 72
    for problem in PROBLEMS[:300]:
        for text in (problem.problem, synthetic.demonstration(problem.problem, 0)):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
            assert tokenizer.unk_token_id not in ids


@given(ids=st.lists(st.integers(5, 71), max_size=30))
@settings(derandomize=True, max_examples=100)
def test_any_sampled_ids_decode_to_their_tokens_joined(ids: list[int]) -> None:
    tokenizer = synthetic.build_tokenizer()
    assert tokenizer.decode(ids) == "".join(synthetic.vocabulary()[index - 5] for index in ids)


def test_no_token_begins_another() -> None:
    tokens = synthetic.vocabulary()
    assert len(set(tokens)) == len(tokens)
    assert not [(a, b) for a in tokens for b in tokens if a != b and b.startswith(a)]
    assert re.findall(synthetic.TOKEN_PATTERN, "".join(tokens)) == tokens


def test_lengths_are_those_of_the_task() -> None:
    tokenizer = synthetic.build_tokenizer()
    chat = [{"role": "user", "content": PROBLEMS[0].problem}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == f"<user>{PROBLEMS[0].problem}<assistant>"
    completions = [synthetic.demonstration(p.problem, 0) for p in PROBLEMS[:1000]]
    lengths = [len(ids) + 1 for ids in tokenizer(completions)["input_ids"]]
    assert 28 < sum(lengths) / len(lengths) < 30
    assert max(lengths) <= 40


def test_the_chat_template_writes_whole_conversations_and_refuses_other_roles() -> None:
    tokenizer = synthetic.build_tokenizer()
    turns = [{"role": "user", "content": "how many ?"}, {"role": "assistant", "content": "\\boxed{4}"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<user>how many ?<assistant>\\boxed{4}<eos>"
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match="only the roles"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be kind."}], tokenize=False)


def test_the_tokenizer_survives_its_folder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = synthetic.build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = PROBLEMS[0].problem + synthetic.demonstration(PROBLEMS[0].problem, 0)
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.pad_token_id, loaded.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert loaded.pad_token_id != loaded.eos_token_id
