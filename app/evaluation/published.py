"""Scores that others have published for open models, each with where it stands and how it was made.

Read at the commits named; docs/expected_scores.md shows them as a table. Figures are in percent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

PROBLEMS = {
    "aime24": 30,
    "aime25": 30,
    "amc23": 40,
    "math500": 500,
    "minerva": 272,
    "olympiadbench": 675,
    "gsm8k": 1319,
}
"""Problems of each benchmark."""

STEPS = "Please reason step by step, and put your final answer within \\boxed{}."
LIGHTEVAL = (
    "Solve the following math problem efficiently and clearly.  The last line of your response should be of the "
    "following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without quotes) "
    "where ANSWER is just the final number or expression that solves the problem. Think step by step before "
    "answering.\n\n{problem}"
)
"""The user's turn of lighteval's math tasks up to version 0.9 (``default_prompts.py``)."""


@dataclass(frozen=True)
class Protocol:
    """How a source made its scores.

    Attributes:
        name: short.
        place: repository, commit and file, as text.
        configuration: of this project that does the same, with the options that it needs.
        template: the user's turn.
        system: the system prompt, None for none.
        temperature, top_p, max_new_tokens: of sampling; temperature 0 is greedy.
        samples: completions a problem, by benchmark; 1 where it is not named.
        about: what else one must know of it.
    """

    name: str
    place: str
    configuration: str
    template: str
    system: str | None
    temperature: float
    top_p: float
    max_new_tokens: int
    samples: Mapping[str, int]
    about: str


@dataclass(frozen=True)
class Published:
    """One score.

    Attributes:
        model: its name without the owner.
        benchmark: as in ``app.data.registry``.
        percent: the score.
        deviation: standard deviation between the source's runs (seeds), in points, where it gives one.
        protocol: how it was made.
    """

    model: str
    benchmark: str
    percent: float
    deviation: float | None
    protocol: Protocol

    @property
    def tolerance(self) -> float:
        """Points within which another evaluation by the same protocol should lie.

        The largest of two standard deviations between the source's runs, two binomial ones of its completions (problems
        × samples), and one problem: other seeds, kernels and graders move a score by about as much.
        """
        share = self.percent / 100
        problems = PROBLEMS[self.benchmark]
        completions = problems * self.protocol.samples.get(self.benchmark, 1)
        binomial = 200 * (share * (1 - share) / completions) ** 0.5
        return round(max(2 * (self.deviation or 0.0), binomial, 100 / problems), 1)


SOBER = Protocol(
    "sober-reasoning",
    "bethgelab/sober-reasoning, commit 8fceffd: data.json, main.py, lighteval_tasks.py, index.html",
    "configs/benchmarks/reasoning_32k.yaml --evaluation.sampling.temperature 0.8 --evaluation.sampling.top_p 0.9",
    LIGHTEVAL,
    None,
    0.8,
    0.9,
    32768,
    {"aime24": 10, "aime25": 10, "amc23": 10, "math500": 3, "minerva": 3, "olympiadbench": 3},
    "Mean and standard deviation over seeds. Models with a shorter context have less than 32,768 tokens.",
)
OPEN_R1 = Protocol(
    "open-r1",
    "huggingface/open-r1, commit 1416fa0: README.md",
    "configs/benchmarks/reasoning_32k.yaml",
    LIGHTEVAL,
    None,
    0.6,
    0.95,
    32768,
    {"aime24": 64, "math500": 4},
    "The README says that it agrees with DeepSeek's own figures within one to three standard deviations.",
)
SIMPLERL = Protocol(
    "SimpleRL-Zoo",
    "hkust-nlp/simpleRL-reason, commit cf1c785: README.md, eval_math_nodes.sh, examples/simplelr_math_eval/utils.py",
    "configs/benchmarks/simplerl_greedy.yaml",
    f"{{problem}}\n{STEPS}",
    "You are a helpful assistant.",
    0.0,
    1.0,
    16000,
    {},
    "Base models, greedy. The prompt is that of the README's example (qwen-boxed); it does not say that every base "
    "model of the table was asked by it. Left out: models below 7B, and those without a chat template of their own, "
    "for which the repository has simpler prompts.",
)
QWEN_MATH = Protocol(
    "Qwen2.5-Math",
    "QwenLM/Qwen2.5-Math, commit a45202b: README.md, evaluation/{sh/eval.sh,math_eval.py,utils.py}",
    "configs/benchmarks/qwen_math.yaml",
    "{problem}",
    STEPS,
    0.0,
    1.0,
    2048,
    {},
    "Greedy (qwen25-math-cot). The README's tables are pictures; this is the one figure for a benchmark of ours that "
    "stands in its text (9 of 30 problems).",
)

_SIX = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench")
_SOBER = {
    "DeepSeek-R1-Distill-Qwen-1.5B": "28.7±4.8 22.3±5.2 71.5±3.9 84.9±0.3 30.5±1.0 52.4±0.4",
    "DeepSeek-R1-Distill-Qwen-7B": "52.3±6.3 39.0±5.9 91.5±2.7 94.1±0.3 40.1±0.4 67.0±0.4",
    "Qwen2.5-Math-1.5B": "11.3±3.6 5.7±2.7 44.0±4.9 51.7±5.5 11.3±2.2 26.0±0.6",
    "Qwen2.5-Math-1.5B-Instruct": "12.0±1.7 11.7±5.7 54.8±5.3 74.7±0.5 26.7±1.8 37.9±0.2",
    "Qwen2.5-Math-7B": "20.7±3.8 8.7±3.9 56.2±5.7 64.3±0.5 17.3±1.9 29.0±0.5",
    "Qwen2.5-Math-7B-Instruct": "15.7±3.9 10.7±3.8 67.0±3.9 82.9±0.1 35.0±0.6 41.3±0.9",
    "Qwen2.5-7B": "8.0±3.2 3.7±3.7 35.8±4.9 59.7±0.3 21.4±1.9 27.0±1.0",
    "Qwen2.5-7B-Instruct": "12.3±3.2 7.3±3.4 52.8±4.8 77.3±0.8 34.9±1.0 38.9±0.9",
}
_OPEN_R1 = {
    "DeepSeek-R1-Distill-Qwen-1.5B": "30.7 83.1",
    "DeepSeek-R1-Distill-Qwen-7B": "50.8 94.5",
    "DeepSeek-R1-Distill-Qwen-14B": "65.9 94.1",
    "DeepSeek-R1-Distill-Qwen-32B": "69.7 95.6",
    "DeepSeek-R1-Distill-Llama-8B": "43.9 88.6",
    "DeepSeek-R1-Distill-Llama-70B": "63.0 95.1",
}
_SIMPLERL = {
    "Qwen2.5-7B": "88.2 64.6 25.7 30.1 3.3 30.0",
    "Qwen2.5-Math-7B": "65.5 63.6 12.5 25.8 13.3 42.5",
    "Qwen2.5-14B": "91.6 65.4 24.3 33.5 6.7 37.5",
    "Qwen2.5-32B": "92.9 68.6 27.9 31.1 10.0 45.0",
}


def _scores(rows: Mapping[str, str], benchmarks: tuple[str, ...], protocol: Protocol) -> list[Published]:
    found = []
    for model, row in rows.items():
        for benchmark, cell in zip(benchmarks, row.split(), strict=True):
            percent, _, deviation = cell.partition("±")
            found.append(Published(model, benchmark, float(percent), float(deviation) if deviation else None, protocol))
    return found


PUBLISHED: tuple[Published, ...] = (
    *_scores(_SOBER, _SIX, SOBER),
    *_scores(_OPEN_R1, ("aime24", "math500"), OPEN_R1),
    *_scores(_SIMPLERL, ("gsm8k", "math500", "minerva", "olympiadbench", "aime24", "amc23"), SIMPLERL),
    *_scores({"Qwen2.5-Math-72B-Instruct": "30.0"}, ("aime24",), QWEN_MATH),
)
