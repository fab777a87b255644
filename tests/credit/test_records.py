"""What is recorded of a group: the numbers that were handed in, shortened, and the credit of every variant."""

import json
from dataclasses import replace

import pytest
import torch

from app.algorithm.credit import every_variant, token_credit
from app.algorithm.objective import ObjectiveSettings
from app.credit import records
from app.credit.figure import bins, draw, shown_completions
from app.credit.records import chosen_rows, kept_tokens, record_of, rounded
from tests.credit.groups import HOSTILE, made_up

SETTINGS = ObjectiveSettings(lam=0.9, style="recent")


def test_a_record_holds_the_credit_of_every_variant_on_the_same_tokens() -> None:
    group = made_up([6, 3])
    record = record_of(group, SETTINGS)
    best, worst = record["completions"]
    assert (record["variant"], record["q"], record["clip"]) == ("trace_recent", 0.9, [0.2, 0.2])
    assert (best["advantage"], best["length"], worst["length"]) == (1.0, 6, 3)
    assert best["texts"] == [f"t0.{k} " for k in range(6)]
    for name, settings in every_variant(SETTINGS).items():
        credit = token_credit(group.log_ratio, group.advantages, group.mask, settings)
        assert best["variants"][name]["credit"] == pytest.approx(credit[0].tolist(), rel=6e-3)
        assert worst["variants"][name]["credit"] == pytest.approx(credit[1, :3].tolist(), rel=6e-3)
    z = torch.cumsum(group.log_ratio[0].double() * 0.9 ** -torch.arange(6), 0) * 0.9 ** torch.arange(6)
    assert best["variants"]["trace_recent"]["z"] == pytest.approx(z.tolist(), rel=6e-3)
    assert best["old_log_prob"] == pytest.approx(group.old_log_probs[0].tolist(), rel=6e-3)


def test_completions_that_took_no_part_have_texts_and_no_numbers() -> None:
    record = record_of(made_up([4, 4, 4], idle=1), SETTINGS)
    idle = next(each for each in record["completions"] if each["index"] == 2)
    assert not idle["took_part"]
    assert (idle["variants"], idle["log_ratio"], idle["entropy"]) == ({}, None, None)
    assert len(idle["texts"]) == 4
    assert all(each["took_part"] for each in record["completions"] if each["index"] < 2)


def test_of_a_large_group_the_best_and_the_worst_are_kept() -> None:
    assert chosen_rows([0.0, 2.0, 1.0]) == [1, 2, 0]
    assert chosen_rows([float(n) for n in range(20)]) == [19, 18, 17, 16, 3, 2, 1, 0]


def test_of_a_long_completion_both_ends_are_kept_with_the_credit_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = record_of(made_up([10, 2]), SETTINGS)["completions"][0]
    monkeypatch.setattr(records, "TOKENS", 4)
    assert kept_tokens(4) == ([0, 1, 2, 3], None)
    short = record_of(made_up([10, 2]), SETTINGS)["completions"][0]
    assert (short["left_out"], short["length"]) == ([2, 6], 10)
    assert short["texts"] == ["t0.0 ", "t0.1 ", "t0.8 ", "t0.9 "]
    credit = whole["variants"]["trace_recent"]["credit"]
    assert short["variants"]["trace_recent"]["credit"] == [*credit[:2], *credit[-2:]]


def test_numbers_are_short_and_what_is_not_finite_is_null() -> None:
    values = [0.0123456, -123456.0, 1.0, 0.0, 9.996, float("nan"), float("inf"), 1e-14, -5e-324]
    found = rounded(torch.tensor(values, dtype=torch.float64))
    assert found == [0.0123, -123000.0, 1.0, 0.0, 10.0, None, None, 1e-14, 0.0]
    assert rounded(torch.zeros(3)) is None
    assert json.dumps(rounded(torch.tensor([0.1, 0.2, 0.3]) * 3)) == "[0.3, 0.6, 0.9]"


def test_an_infinite_clip_and_a_missing_reward_are_json() -> None:
    group = made_up([2, 2])
    group = replace(
        group, completions=[replace(each, reward=float("nan"), texts=HOSTILE[:2]) for each in group.completions]
    )
    record = record_of(group, replace(SETTINGS, clip_high=float("inf")))
    assert json.loads(json.dumps(record, allow_nan=False))["completions"][0]["reward"] is None
    assert record["clip"] == [0.2, None]


def test_the_picture_has_a_row_for_each_variant_and_both_colours() -> None:
    record = record_of(made_up([50, 30, 20, 10, 900], idle=1, problem="\x00<b>é😀\n" * 100), SETTINGS)
    assert [each["index"] for each in shown_completions(record["completions"])] == [0, 1, 2, 3]
    picture = draw(record)
    assert picture.shape[2] == 3
    assert picture.shape[0] > 4 * 8 * 20
    colours = {tuple(each) for each in picture.reshape(-1, 3)[::7].tolist()}
    assert {(28, 104, 196), (204, 92, 0)} <= colours
    assert bins([1.0, -3.0, None, 2.0, 0.5], 2) == [-3.0, 2.0, 0.5]
