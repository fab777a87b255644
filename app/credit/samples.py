"""The page of token credit for the samples of an evaluation:

    python -m app.credit.samples runs/my-run/version_0/evaluation --benchmark math500 --lam 0.99

It shows what each variant would teach the evaluated policy by these completions: with ratios of 1, and with the
verdict as the reward. Sample logs hold texts, so that tokens are those that the tokenizer cuts the text into.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.algorithm.advantages import group_advantages
from app.algorithm.objective import ObjectiveSettings
from app.credit.journal import MEGABYTE, Journal
from app.credit.page import write_page
from app.credit.records import Completion, Group, record_of
from app.data.problems import Problem
from app.data.prompts import PromptEncoder, PromptSettings
from app.errors import ConfigurationError, require
from app.evaluation.results import read_results
from app.evaluation.samples import Sample, read_samples
from app.policy.decoding import token_texts
from app.policy.evaluating import evaluation
from app.policy.logprobs import token_log_probs
from app.policy.models import end_token_ids, load_policy, load_tokenizer
from app.policy.packing import build
from app.policy.settings import PolicySettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scorer:
    """Turns the samples of a problem into a group.

    Attributes:
        policy: whose log-probabilities are shown.
        tokenizer: its.
        encoder: of the prompts, as the evaluation made them.
        end: the token that ends a completion.
    """

    policy: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    encoder: PromptEncoder
    end: int

    def token_ids(self, sample: Sample) -> list[int]:
        """Of its text, and the end token where there was one; at least one token."""
        ids: list[int] = self.tokenizer(sample.completion, add_special_tokens=False)["input_ids"]
        return [*ids, self.end] if sample.finish_reason == "stop" or not ids else ids

    @torch.no_grad()
    def group(self, number: int, samples: Sequence[Sample]) -> Group:
        """The group of a problem's samples; one forward pass for each, so that long ones fit."""
        problem = Problem(samples[0].id, samples[0].problem, samples[0].answer)
        prompt, rows = self.encoder.encode([problem])[0], [self.token_ids(each) for each in samples]
        width = max(map(len, rows))
        log_probs, entropy = torch.zeros(len(rows), width), torch.zeros(len(rows), width)
        with evaluation(self.policy, self.policy.device):
            for row, ids in enumerate(rows):
                tokens = build([prompt], [ids], self.end).to(self.policy.device)
                found = token_log_probs(self.policy, tokens, 1.0, with_entropy=True)
                assert found.entropy is not None, "was asked for"
                log_probs[row, : len(ids)], entropy[row, : len(ids)] = found.log_probs[0], found.entropy[0]
        rewards = torch.tensor([[float(each.correct) for each in samples]])
        completions = [
            Completion(token_texts(self.tokenizer, ids), float(each.correct), each.finish_reason)
            for ids, each in zip(rows, samples, strict=True)
        ]
        mask = torch.arange(width) < torch.tensor([len(ids) for ids in rows]).unsqueeze(1)
        zero, advantages = torch.zeros_like(log_probs), group_advantages(rewards)[0]
        return Group(number, problem.problem, problem.answer, completions, mask, zero, log_probs, entropy, advantages)


def contested(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The problems that some samples solve and others do not: in the others no token would get credit."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.id, []).append(sample)
    return [group for group in groups.values() if 0 < sum(each.correct for each in group) < len(group)]


def write(folder: Path, benchmark: str, settings: ObjectiveSettings, policy: str | None, problems: int) -> Path:
    """Writes ``credit-<benchmark>.html`` into an evaluation's folder, its records beside it, and returns its path.

    Args:
        folder: of a finished evaluation.
        benchmark: whose samples.
        settings: q, and the variant to show first.
        policy: another one than that which was evaluated.
        problems: how many are shown.

    Raises:
        ConfigurationError: there is no such evaluation, it asked in a way that is not recorded, or no problem was both
            solved and missed.
    """
    require(problems >= 1, "must be at least 1", problems, "problems")
    made_by, groups = read_results(folder)["settings"], contested(read_samples(folder, benchmark))
    if not groups:
        message = f"{benchmark} has no problem that some samples solve and others do not, and credit is relative to a "
        raise ConfigurationError(message + f"group: draw more (evaluation.benchmarks.{benchmark}.samples: 8)")
    journal = Journal(folder / f"credit-{benchmark}.jsonl", 1000 * MEGABYTE)
    journal.path.unlink(missing_ok=True)
    scorer = _scorer(made_by, benchmark, policy)
    for number, samples in enumerate(groups[:problems], start=1):
        record = record_of(scorer.group(number, samples), settings)
        journal.append([record | {"label": f"{benchmark}, problem {samples[0].id}"}])
        _warn_of_other_tokens(scorer, samples)
    page = journal.path.with_suffix(".html")
    write_page(journal.path, page, f"{benchmark}: {min(problems, len(groups))} of {len(groups)} contested problems")
    return page


def _warn_of_other_tokens(scorer: Scorer, samples: Sequence[Sample]) -> None:
    other = sum(len(scorer.token_ids(each)) != each.n_tokens for each in samples)
    if other:
        said = f"warning: {other} of {len(samples)} completions of problem {samples[0].id} are cut into other tokens"
        print(f"{said} than were sampled: their text does not tell", file=sys.stderr)


def _scorer(made_by: Mapping[str, Any], benchmark: str, policy: str | None) -> Scorer:
    path = policy or made_by["ckpt_path"] or made_by["policy"]["path"]
    if path is None:
        raise ConfigurationError("a policy with random weights was evaluated: give --policy", key="policy")
    if benchmark not in made_by.get("prompts", {}):
        raise ConfigurationError(f"the evaluation does not say how {benchmark} was asked: validate again")
    own = made_by["policy"]["tokenizer"]
    settings = PolicySettings(path=str(path), tokenizer=own if isinstance(own, str) else None)
    tokenizer, model = load_tokenizer(settings), load_policy(settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = PromptEncoder(PromptSettings(**made_by["prompts"][benchmark]), tokenizer)
    return Scorer(model.to(device), tokenizer, encoder, end_token_ids(tokenizer, model)[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page and prints where; where it cannot, one line on standard error and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m app.credit.samples", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a finished evaluation")
    parser.add_argument("--benchmark", required=True, metavar="NAME", help="whose samples")
    parser.add_argument("--policy", metavar="PATH", help="another policy than that which was evaluated")
    parser.add_argument("--lam", type=float, default=0.99, help="λ of the traces (default: 0.99)")
    parser.add_argument("--problems", type=int, default=20, help="at most so many (default: 20)")
    options = parser.parse_args(arguments)
    try:
        settings = ObjectiveSettings(lam=options.lam)
        print(write(options.folder, options.benchmark, settings, options.policy, options.problems))
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
