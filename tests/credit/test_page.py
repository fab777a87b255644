"""The page in a real browser: what is on it, what it answers to, and what a model's text cannot do there."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.algorithm.objective import ObjectiveSettings
from app.credit.journal import Journal
from app.credit.page import render, write_page
from app.credit.records import record_of
from tests.browser import chromium
from tests.credit.groups import HOSTILE, made_up

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

SETTINGS = ObjectiveSettings(lam=0.9, style="recent")
LONG = 4000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short group, one with a completion of 4,000 tokens, one whose text would act, one with two alike."""
    pair = made_up([4, 4, 4], iteration=40)
    first = pair.completions[0]
    pair = replace(pair, completions=[first, replace(first), pair.completions[2]])
    hostile = made_up([len(HOSTILE), 3], iteration=30, problem=f"What is {HOSTILE[0]} {HOSTILE[1]}?")
    texts = replace(hostile.completions[0], texts=HOSTILE)
    groups = [
        made_up([8, 6, 5], iteration=10, problem="Tom has 3 apples.", idle=1),
        made_up([LONG, 12], iteration=20, seed=1, problem="A long one."),
        replace(hostile, completions=[texts, hostile.completions[1]]),
        pair,
    ]
    folder = tmp_path_factory.mktemp("page")
    journal = Journal(folder / "credit.jsonl", 10**8)
    for group in groups:
        journal.append([record_of(group, SETTINGS)])
    assert write_page(journal.path, folder / "credit.html", "a <b>run</b>") == 4
    return folder / "credit.html"


@pytest.fixture(scope="module")
def browser_page(file: Path) -> "Iterator[Page]":
    with chromium() as browser:
        page = browser.new_context(color_scheme="dark", viewport={"width": 1300, "height": 900}).new_page()
        page.errors = []  # type: ignore[attr-defined]
        page.requests = []  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: page.errors.append(str(error)))  # type: ignore[attr-defined]
        page.on("request", lambda request: page.requests.append(request.url))  # type: ignore[attr-defined]
        page.goto(file.as_uri())
        yield page


@pytest.fixture
def page(browser_page: "Page") -> "Page":
    """As it is when it is opened."""
    browser_page.reload()
    return browser_page


def group(page: "Page", iteration: int) -> "Locator":
    return page.locator(".group", has_text=f"iteration {iteration} ")


def test_every_token_is_there_with_its_numbers_under_the_pointer(page: "Page") -> None:
    tokens = group(page, 10).locator(".completion").first.locator(".tokens span")
    assert tokens.all_text_contents() == [f"t0.{k} " for k in range(8)]
    tokens.nth(3).hover()
    panel = page.locator("#panel")
    record = record_of(made_up([8, 6, 5], iteration=10, idle=1), SETTINGS)["completions"][0]
    assert "token 4 of 8" in panel.inner_text()
    rows = dict(row.split("\t") for row in panel.inner_text().splitlines() if "\t" in row)
    assert float(rows["trace recent (this run)"].split()[0]) == record["variants"]["trace_recent"]["credit"][3]
    assert float(rows["GRPO"]) == record["variants"]["grpo"]["credit"][3]
    assert float(rows["log-probability before"].replace("−", "-")) == record["old_log_prob"][3]
    assert float(rows["z of trace recent"].replace("−", "-")) == record["variants"]["trace_recent"]["z"][3]
    assert page.errors == []  # type: ignore[attr-defined]


def test_markup_in_a_models_text_is_text(page: "Page") -> None:
    own = group(page, 30)
    shown = own.locator(".completion").first.locator(".tokens span").all_text_contents()
    assert shown[0] == HOSTILE[0]
    assert shown[1] == HOSTILE[1]
    assert shown[2:4] == HOSTILE[2:4]
    assert shown[4] == "\ufffdgnp.exe\ufffd"  # what would turn the line around is shown, not obeyed
    assert shown[5:8] == ["\ufffd", "\u2400\u241b[31m", "{{js}} {{data}}"]
    assert HOSTILE[0] in own.locator("h2").inner_text()
    assert page.locator("#groups img, #groups script, #groups b.bold").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.title() == "Token credit: a <b>run</b>"


def test_the_page_asks_for_nothing_and_its_policy_would_let_nothing_in(page: "Page", file: Path) -> None:
    assert set(page.requests) == {file.as_uri()}  # type: ignore[attr-defined]
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='window.hacked = 3'>`)")
    page.wait_for_timeout(50)
    assert page.evaluate("window.hacked") is None


def test_filters_leave_what_fits(page: "Page") -> None:
    assert page.locator("#count").inner_text() == "4 of 4 problems"
    page.fill("#text", "apples")
    assert page.locator(".group h2").all_inner_texts() == ["Tom has 3 apples."]
    page.fill("#text", "t1.11 ")  # in a completion
    assert page.locator(".group h2").all_inner_texts() == ["A long one."]
    page.fill("#text", "")
    page.select_option("#iteration", "20")
    assert page.locator(".group").count() == 1
    page.select_option("#iteration", "")
    page.fill("#low", "0.6")
    page.fill("#high", "0.9")
    assert page.locator(".completion").count() == 1  # the one with a reward of 2/3
    page.fill("#low", "5")
    assert "Nothing fits" in page.locator("#groups").inner_text()


def test_4000_tokens_are_shown_when_asked_for_and_keys_find_the_strongest(page: "Page") -> None:
    long = group(page, 20).locator(".completion").first
    assert long.locator(".tokens").count() == 0
    record = record_of(made_up([LONG, 12], seed=1), SETTINGS)["completions"][0]
    credit = record["variants"]["trace_recent"]["credit"]
    strongest = max(range(LONG), key=lambda k: abs(credit[k]))
    long.locator(".strongest button").first.click()
    assert long.locator(".tokens span").count() == LONG
    focused = page.evaluate("document.activeElement.dataset.k")
    assert int(focused) == strongest
    assert f"token {strongest + 1} of {LONG}" in page.locator("#panel").inner_text()
    page.keyboard.press("n")
    second = int(page.evaluate("document.activeElement.dataset.k"))
    assert abs(credit[second]) == sorted(map(abs, credit))[-2]
    page.keyboard.press("ArrowRight")
    assert int(page.evaluate("document.activeElement.dataset.k")) == second + 1
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") > 0


def test_every_variant_has_a_strip_and_a_click_in_it_leads_to_the_token(page: "Page") -> None:
    own = group(page, 10).locator(".completion").first
    assert own.locator(".strip span").all_inner_texts()[0].startswith("GRPO ±")
    assert own.locator("canvas").count() == 2
    page.select_option("#beside", "all")
    assert own.locator("canvas").count() == 8
    data = "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer"
    inked = f"canvas => new Set(new Uint32Array({data})).size"
    assert all(own.locator("canvas").nth(n).evaluate(inked) > 2 for n in range(8))
    own.locator("canvas").nth(1).click(position={"x": 5 * 18 + 3, "y": 10})
    assert page.evaluate("document.activeElement.dataset.k") == "5"
    page.select_option("#measure", "entropy")
    assert own.locator("canvas").count() == 1


def test_equal_completions_are_shown_once(page: "Page") -> None:
    twice = group(page, 40).locator(".completion")
    assert twice.count() == 2
    assert "2 times the same" in twice.nth(0).inner_text()
    assert "times the same" not in twice.nth(1).inner_text()


def test_what_took_no_part_says_so(page: "Page") -> None:
    idle = group(page, 10).locator(".completion", has_text="no part in the update")
    assert idle.count() == 1
    assert idle.locator("canvas").count() == 0
    idle.locator(".tokens span").first.hover()
    assert "took no part" in page.locator("#panel").inner_text()


def test_the_theme_follows_the_system_until_it_is_chosen(page: "Page") -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(16, 19, 23)"
    page.click("#theme")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.click("#theme")
    assert page.evaluate(background) == "rgb(16, 19, 23)"


def test_the_data_cannot_end_their_block() -> None:
    """Whatever browser there is."""
    line = json.dumps({"iteration": 1, "problem": "</script><!--<script>", "completions": []})
    page = render(line.encode(), {"title": "t</title><script>"}).decode()
    assert page.count("<script") == 2
    assert page.count("</title>") == 1
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data)["groups"][0]["problem"] == "</script><!--<script>"
