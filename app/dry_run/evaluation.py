"""The print-out of ``validate --dry_run``: what it would draw, how it would ask, and which scores to expect."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.data.prompts import PLACEHOLDER, PromptEncoder
from app.data.shown_prompt import show_prompt
from app.dry_run.audit import audit_section
from app.dry_run.plan import Parts, meta_policy
from app.dry_run.sources import Resolved, policy_place, resolve
from app.engines.engine import SamplingSettings
from app.evaluation.benchmarks import align
from app.evaluation.expected import Conditions, differences, reference_model
from app.evaluation.published import PROBLEMS, PUBLISHED
from app.policy.context import context_length
from app.policy.models import end_token_ids

if TYPE_CHECKING:
    from callbacks import BenchmarkEvaluation


@dataclass(frozen=True)
class PlannedBenchmark:
    """One benchmark before it is run.

    Attributes:
        name: the benchmark's.
        resolved: where its problems come from.
        problems: how many; None where that takes a download.
        conditions: how they would be drawn.
        encoder: of its prompts.
        prompt_tokens: the longest prompt, or that of the template alone where no problem is at hand.
    """

    name: str
    resolved: Resolved
    problems: int | None
    conditions: Conditions
    encoder: PromptEncoder
    prompt_tokens: int


def evaluation_dry_run(parts: Parts) -> str:
    """What ``validate`` would read, draw and print, without weights or downloads.

    Raises:
        ConfigurationError: the evaluation could not work.
    """
    assert parts.evaluation is not None, "checked before"
    policy = meta_policy(parts.module.policy_settings)
    context = context_length(policy.config)
    ends = end_token_ids(parts.module.tokenizer, policy, parts.module.policy_settings.end_tokens)
    parts.data.ask_as_trained(parts.module.policy_settings.path)
    planned = [_planned(parts, parts.evaluation, name, context) for name in parts.data.benchmark_names]
    sections = [
        f"model\n  policy        {policy_place(parts.module.policy_settings)}",
        _table(planned),
        "problems\n" + "\n".join(f"  {each.name:<14}{each.resolved.where}" for each in planned),
        *audit_section(parts, fit=False),
        *_prompts(planned, ends),
        *_expected(parts, parts.evaluation, planned),
        "\n".join(["warnings", *(f"  - {line}" for line in [*_warnings(planned, context)] or ["none"])]),
    ]
    return "\n\n".join(sections)


def _planned(parts: Parts, evaluation: "BenchmarkEvaluation", name: str, context: int | None) -> PlannedBenchmark:
    benchmark, settings = parts.data.benchmarks[name], evaluation.plan.settings(name)
    prompt = benchmark.prompt or parts.data.prompt
    encoder = PromptEncoder(prompt, parts.module.tokenizer, context)
    resolved = resolve(benchmark.source)
    problems = resolved.problems[: benchmark.limit] if resolved.problems is not None else None
    lengths = [len(ids) for ids in encoder.encode(problems)] if problems else [len(encoder.ids(PLACEHOLDER))]
    conditions = Conditions(settings.sampling(evaluation.plan.sampling), settings.samples, prompt.resolve())
    return PlannedBenchmark(
        name, resolved, None if problems is None else len(problems), conditions, encoder, max(lengths)
    )


def _table(planned: list[PlannedBenchmark]) -> str:
    header = ["benchmark", "problems", "samples", "completions", "drawn", "tokens at most", "longest prompt"]
    rows = [header]
    for each in planned:
        count, samples, sampling = each.problems, each.conditions.samples, each.conditions.sampling
        drawn = "?" if count is None else f"{count * samples:,}"
        problems = "?" if count is None else str(count)
        longest = f"{each.prompt_tokens}{'' if count else ' and the problem'}"
        rows.append(
            [each.name, problems, str(samples), drawn, _drawn(sampling), f"{sampling.max_new_tokens:,}", longest]
        )
    return align(rows)


def _drawn(sampling: SamplingSettings) -> str:
    return "greedy" if sampling.temperature == 0 else f"T {sampling.temperature:g}, top-p {sampling.top_p:g}"


def _prompts(planned: list[PlannedBenchmark], ends: tuple[int, ...]) -> Iterator[str]:
    """The first prompt of each way of asking."""
    shown: set[str] = set()
    for each in planned:
        first = each.resolved.problems[0].problem if each.resolved.problems else PLACEHOLDER
        key = each.encoder.text(PLACEHOLDER)
        if key not in shown:
            shown.add(key)
            prompt = show_prompt(each.encoder.ids(first), each.encoder.tokenizer, ends, each.encoder.thinking)
            yield f"first prompt of {each.name}\n{prompt}"


def _expected(parts: Parts, evaluation: "BenchmarkEvaluation", planned: list[PlannedBenchmark]) -> Iterator[str]:
    model = reference_model(evaluation.plan.reference, parts.module.policy_settings.path)
    rows = [["benchmark", "published", "tolerance", "source", "made in another way"]]
    for each in planned:
        for score in (score for score in PUBLISHED if (score.model, score.benchmark) == (model, each.name)):
            count = PROBLEMS[each.name] if each.problems is None else each.problems
            other = ", ".join(differences(score, count, each.conditions)) or "–"
            rows.append([each.name, f"{score.percent:.1f}", f"± {score.tolerance:.1f}", score.protocol.name, other])
    if len(rows) > 1:
        yield f"published scores of {model} (docs/expected_scores.md), in percent\n{align(rows)}"


def _warnings(planned: list[PlannedBenchmark], context: int | None) -> Iterator[str]:
    reach = {each.name: each.prompt_tokens + each.conditions.sampling.max_new_tokens for each in planned}
    beyond = {name: tokens for name, tokens in reach.items() if context is not None and tokens > context}
    if beyond:
        yield (
            f"prompt and completion may reach {max(beyond.values()):,} tokens; the model's context of {context:,} ends "
            f"them before evaluation.sampling.max_new_tokens (of {', '.join(beyond)})"
        )
