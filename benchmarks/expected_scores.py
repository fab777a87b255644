"""Writes docs/expected_scores.md from the published scores that the code knows.

.venv/bin/python -m benchmarks.expected_scores
"""

from pathlib import Path

from app.evaluation.published import OPEN_R1, PUBLISHED, QWEN_MATH, SIMPLERL, SOBER, Protocol, Published

PAGE = Path(__file__).parents[1] / "docs" / "expected_scores.md"
BENCHMARKS = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k")
INTRODUCTION = """# Scores to expect

`validate` prints published scores of the same model beside its own, where it knows the model by the name of its
folder or hub id, or by `--evaluation.reference NAME`. Each figure below was read at its source, at the commit named;
what could not be read there as text is left out. The page is written by `python -m benchmarks.expected_scores` from
`app/evaluation/published.py`.

In brackets stands the tolerance, in points: the largest of two standard deviations between the source's runs (where
it gives one), two binomial standard deviations of its completions (problems × samples), and one problem. The column
`made in another way` of the print-out names every setting of sampling and prompt in which an evaluation differs from
the source's; `within` is told only where there is none. Graders differ too (the sources use math-verify through
lighteval, or Qwen's evaluator; docs/grading.md is ours), and copies of Minerva and OlympiadBench with other answers
are about. None of these scores has been reproduced here yet: that takes a GPU.
"""


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(_section(protocol) for protocol in (OPEN_R1, SOBER, SIMPLERL, QWEN_MATH))


def _section(protocol: Protocol) -> str:
    scores = [score for score in PUBLISHED if score.protocol is protocol]
    names = [name for name in BENCHMARKS if any(score.benchmark == name for score in scores)]
    rows = [["model", *names], ["---", *["---:"] * len(names)]]
    for model in dict.fromkeys(score.model for score in scores):
        found = {score.benchmark: score for score in scores if score.model == model}
        rows.append([model, *(_cell(found.get(name)) for name in names)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"\n## {protocol.name}\n\n{_facts(protocol)}\n\n{table}\n"


def _facts(protocol: Protocol) -> str:
    samples = ", ".join(f"{count} of {name}" for name, count in protocol.samples.items())
    sampling = "greedy" if protocol.temperature == 0 else f"temperature {protocol.temperature}, top-p {protocol.top_p}"
    prompt = protocol.template.replace("\n", "\\n")
    lines = [
        f"Source: {protocol.place}.",
        f"Sampling: {sampling}, {protocol.max_new_tokens:,} tokens; completions a problem: {samples or 'one'}.",
        f"User's turn, by the chat template: `{prompt}`",
        f"System prompt: {f'`{protocol.system}`' if protocol.system else 'none'}",
        f"Here: `{protocol.configuration}`",
        protocol.about,
    ]
    return "\n".join(f"- {line}" for line in lines)


def _cell(score: Published | None) -> str:
    return "–" if score is None else f"{score.percent:.1f} (±{score.tolerance:.1f})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
