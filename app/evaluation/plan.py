"""How an evaluation samples and grades: common settings, those of single benchmarks over them, and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from app.data.problems import Problem
from app.data.rows import nearest
from app.engines.engine import GenerationRequest, SamplingSettings
from app.errors import ConfigurationError
from app.evaluation.benchmarks import BenchmarkSettings
from app.evaluation.expected import reference_model
from app.evaluation.golds import report_golds
from app.evaluation.grader_version import grader_version
from app.evaluation.results import fingerprint
from app.evaluation.samples import check_name
from app.grading.grader import Grader
from app.seeds import derive_seed


@dataclass(frozen=True)
class EvaluationPlan:
    """What is the same for every evaluation of a run.

    Attributes:
        sampling: the common settings.
        benchmarks: settings by benchmark's name, over the common ones.
        grader_workers: processes that grade.
        grader_timeout_s: wall limit of one verdict, in seconds.
        seed: of sampling; sample i of a problem depends on (seed, benchmark, the problem's id, i) alone.
        reference: the model whose published scores belong beside these; see
            :func:`app.evaluation.expected.reference_model`.

    Raises:
        ConfigurationError: settings that cannot be, by the key under ``evaluation``.
    """

    sampling: SamplingSettings
    benchmarks: dict[str, BenchmarkSettings] = field(default_factory=dict)
    grader_workers: int = 2
    grader_timeout_s: float = 3.0
    seed: int = 0
    reference: str | None = None

    def __post_init__(self) -> None:
        reference_model(self.reference, None)
        try:
            self.new_grader().close()  # no process starts before the first answer
        except ConfigurationError as error:
            rule = str(error).removeprefix(f"{error.key}: ")
            raise ConfigurationError(rule, key=f"evaluation.grader_{error.key}") from error
        for name in self.benchmarks:
            self.settings(name)

    def new_grader(self) -> Grader:
        """Its processes start with the first answer."""
        return Grader(self.grader_workers, self.grader_timeout_s)

    @cached_property
    def grader_fingerprint(self) -> str:
        """Of the grader's code and its limit: verdicts of another are given anew."""
        return fingerprint([grader_version(), self.grader_timeout_s])

    def check_names(self, known: Sequence[str]) -> None:
        """Refuses settings for a benchmark that is not among the data module's."""
        for name in known:
            check_name(name)
        for name in self.benchmarks:
            if name not in known:
                raise ConfigurationError(
                    f"no such benchmark in data.benchmarks; {nearest(name, known)}", key=f"evaluation.benchmarks.{name}"
                )

    def unreadable_golds(self, problems: dict[str, list[Problem]]) -> list[str]:
        """One line for each benchmark with gold answers that the grader cannot read."""
        with self.new_grader() as grader:
            lines = [report_golds(name, rows, grader) for name, rows in problems.items()]
        return [line for line in lines if line]

    def settings(self, name: str) -> BenchmarkSettings:
        """Those of one benchmark."""
        settings = self.benchmarks.get(name, BenchmarkSettings())
        try:
            settings.sampling(self.sampling)
        except ConfigurationError as error:
            rule, last = str(error).removeprefix(f"{error.key}: "), str(error.key).rsplit(".", 1)[-1]
            raise ConfigurationError(rule, key=f"evaluation.benchmarks.{name}.{last}") from error
        return settings

    def request(
        self, name: str, problem: Problem, prompt_ids: Sequence[int], end_token_ids: tuple[int, ...]
    ) -> GenerationRequest:
        """All samples of one problem of the benchmark ``name``."""
        settings = self.settings(name)
        seed = derive_seed(self.seed, "evaluation", name, problem.id)
        return GenerationRequest(prompt_ids, settings.samples, seed, settings.sampling(self.sampling), end_token_ids)
