"""Makes the pictures of ``docs/credit.md``: the page of token credit of a finished run, and one with long completions.

    .venv/bin/python -m benchmarks.credit_screenshots --run runs/quickstart/grpo-lambda/version_0

The long completions are passages of this project's documentation. A small new policy learns from them with GRPO-λ, two
of the four rewarded, for a few updates, so that their ratios are those of real updates. Needs the development tools
(``make setup-dev``) and Chromium.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from app.algorithm.objective import ObjectiveSettings, policy_objective
from app.credit.journal import Journal
from app.credit.page import write_page
from app.credit.records import Completion, Group, record_of
from app.policy.decoding import token_texts
from app.policy.logprobs import TokenStatistics, token_log_probs
from app.policy.packing import TokenBatch, build
from app.policy.tokenizers import NewTokenizerSettings, new_tokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAGES = ("method.md", "large_models.md", "evaluation.md", "reliability.md")
LENGTH = 4000
QUESTION = "Tell me at length how this project works."
SETTINGS = ObjectiveSettings(application="trace", style="recent", lam=0.995, clip_low=0.3, clip_high=0.3)
UPDATES = 3


def main() -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run with credit.html")
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        long = long_page(Path(folder))
        short = options.run / "credit.html"
        pictures = [
            ("credit_short", short, "light", "credit", "grpo"),
            ("credit_short", short, "dark", "credit", "all"),
            ("credit_4000_tokens", long, "light", "credit", "grpo"),
            ("credit_4000_tokens", long, "dark", "log_ratio", "grpo"),
        ]
        photograph(pictures, options.output)


def long_page(folder: Path) -> Path:
    """The page of one group whose completions have :data:`LENGTH` tokens."""
    journal = Journal(folder / "credit.jsonl", 10**9)
    journal.append([record_of(long_group(folder), SETTINGS)])
    write_page(journal.path, folder / "credit.html", "completions of 4,000 tokens")
    return folder / "credit.html"


def long_group(folder: Path) -> Group:
    """What :data:`UPDATES` updates of a small policy do to four long passages, as the last of them sees it."""
    texts = [(Path("docs") / name).read_text(encoding="utf-8") for name in PAGES]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"solution": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer = new_tokenizer(NewTokenizerSettings(str(corpus), "bpe", 1200))
    rows = [tokenizer(text * 3, add_special_tokens=False)["input_ids"][:LENGTH] for text in texts]
    tokens = build([tokenizer(QUESTION)["input_ids"]] * len(rows), rows, tokenizer.pad_token_id)
    policy, rewards = _policy(tokenizer), [1.0, 1.0, 0.0, 0.0]
    advantages = torch.tensor([0.87, 0.87, -0.87, -0.87])
    old, log_ratio = _learn(policy, tokens, advantages)
    entropy = old.entropy
    assert entropy is not None, "was asked for"
    completions = [
        Completion(token_texts(tokenizer, row), reward, "length") for row, reward in zip(rows, rewards, strict=True)
    ]
    mask = tokens.completion_mask
    return Group(3, QUESTION, "–", completions, mask, log_ratio, old.log_probs, entropy, advantages)


def _policy(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8192,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def _learn(
    policy: "PreTrainedModel", tokens: TokenBatch, advantages: torch.Tensor
) -> tuple[TokenStatistics, torch.Tensor]:
    """(π_old's log-probs and entropies, log π_θ − log π_old after the updates)."""
    with torch.no_grad():
        old = token_log_probs(policy, tokens, 1.0, with_entropy=True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=6e-6)
    for _ in range(UPDATES):
        log_probs = token_log_probs(policy, tokens, 1.0).log_probs
        loss, _ = policy_objective(log_probs, old.log_probs, None, advantages, tokens.completion_mask, SETTINGS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return old, token_log_probs(policy, tokens, 1.0).log_probs - old.log_probs


def photograph(pages: Sequence[tuple[str, Path, str, str, str]], output: Path) -> None:
    """Of each (name, page, theme, colours, what stands beside the run's own variant) a picture, a token chosen."""
    from playwright.sync_api import sync_playwright

    system = shutil.which("chromium") or shutil.which("google-chrome")  # else playwright's own
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=system, args=flags)
        for name, page, theme, measure, beside in pages:
            _photograph(browser, page, theme, {"#beside": beside, "#measure": measure}, output / f"{name}_{theme}.png")
        browser.close()


def _photograph(browser: "Browser", file: Path, theme: str, chosen: dict[str, str], picture: Path) -> None:
    from PIL import Image

    context = browser.new_context(color_scheme=theme, viewport={"width": 1280, "height": 860})  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(file.resolve().as_uri())
    for control, value in chosen.items():
        page.select_option(control, value)
    page.locator(".strongest button").nth(2).click()
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=picture)
    Image.open(picture).convert("RGB").quantize(128).save(picture, optimize=True)
    context.close()


if __name__ == "__main__":
    main()
