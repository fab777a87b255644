"""Real input, small policies: GSM8K under ``fit``, MATH-500 and AIME24 under ``validate``, as JSON lines."""

from pathlib import Path

import pytest
import yaml

from app.evaluation.results import read_results
from tests.command_line import succeed
from tests.data.files import REAL_FOLDER, needs_real_files, write_json_lines

GSM8K = ("fit", "--config", "configs/gsm8k/small_policy.yaml")
MATH = ("validate", "--config", "configs/benchmarks/small_policy.yaml")
LLAMA = ("--config", "configs/policies/small_llama.yaml")  # in the place of the small Qwen 2
TIED = "the completions of every prompt earned the same reward"
STORIES = [
    ("Anna has 3 bags with 4 marbles in each. She gives 5 away. How many are left?", "3 * 4 = 12. 12 - 5 = 7.", "7"),
    ("A pen costs $2 and a book $8. What do 5 pens and a book cost?", "5 * 2 = 10. 10 + 8 = 18.", "18"),
    ("A train goes 60 miles in an hour. How far does it go in 20 hours?", "60 * 20 = 1200.", "1,200"),
    ("Half of 30 pupils are girls. How many are boys?", "30 / 2 = 15.", "15"),
]


def quiet(folder: Path) -> tuple[str, ...]:
    settings = {"accelerator": "cpu", "default_root_dir": str(folder / "runs")}
    path = folder / "quiet.yaml"
    path.write_text(yaml.safe_dump({"trainer": settings}))
    return ("--config", str(path))


def logged(folder: Path, name: str) -> dict[str, list[float]]:
    """By tag, the scalars that TensorBoard would show of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs" / name / "version_0"))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def check_tied_run(folder: Path, shown: str, iterations: int) -> None:
    """All groups are tied: said once, counted always, and the run goes to its end."""
    assert shown.count(TIED) == 2  # when it shows, and among the warnings in the summary at the end
    scalars = logged(folder, "gsm8k-small")
    assert scalars["frac_reward_zero_std"] == [1.0] * iterations
    assert scalars["reward"] == [0.0] * iterations
    assert scalars["policy/updates/skipped"] == [1.0] * iterations
    assert f"iteration {iterations}/{iterations}" in shown


def test_fit_on_problems_that_a_new_policy_cannot_solve_says_so_and_goes_on(tmp_path: Path) -> None:
    """The rows are as openai/grade-school-math writes them."""
    rows = [{"question": text, "answer": f"{steps}\n#### {answer}"} for text, steps, answer in STORIES]
    path = write_json_lines(tmp_path / "train.jsonl", rows)
    columns = ("--data.train.columns", "{problem: question}", "--data.train.answer_format", "after_hashes")
    short = ("--data.prompts_per_iteration", "2", "--data.iterations", "2", "--rollouts.sampling.max_new_tokens", "8")
    shown = succeed(*GSM8K, *LLAMA, *quiet(tmp_path), "--data.train.path", path, *columns, *short)
    check_tied_run(tmp_path, shown, 2)


@pytest.mark.slow
@needs_real_files
def test_fit_on_gsm8k(tmp_path: Path) -> None:
    path = REAL_FOLDER / "train" / "gsm8k_train.jsonl"
    short = ("--data.iterations", "2", "--rollouts.sampling.max_new_tokens", "16")
    shown = succeed(*GSM8K, *quiet(tmp_path), "--data.train.path", path, *short)
    check_tied_run(tmp_path, shown, 2)


@pytest.mark.slow
@needs_real_files
def test_validate_on_math500_and_aime24(tmp_path: Path) -> None:
    where = ("--data.benchmarks.math500.source.folder", REAL_FOLDER, "--evaluation.folder", tmp_path / "out")
    # the tokenizer's corpus lies beside the folder's other files, the sources look at any depth
    corpus = ("--model.policy.tokenizer.corpus", REAL_FOLDER / "benchmarks" / "math500.jsonl")
    few = ("--evaluation.sampling.max_new_tokens", "8")
    shown = succeed(*MATH, *LLAMA, *quiet(tmp_path), *where, *corpus, *few)
    assert [line.split()[:3] for line in shown.splitlines() if line.startswith(("math500", "aime24"))][:2] == [
        ["math500", "500", "1"],
        ["aime24", "30", "4"],
    ]
    results = read_results(tmp_path / "out")
    assert results["settings"]["policy"]["config"]["model_type"] == "llama"
    assert results["benchmarks"]["math500"]["scores"]["accuracy"]["value"] <= 0.02
    assert results["benchmarks"]["aime24"]["scores"]["truncation_rate"]["value"] > 0


def test_validate_on_files_made_on_the_spot(tmp_path: Path) -> None:
    for name, answers in {"math500": [r"\frac{1}{2}", "x=3"], "aime24": ["025", "7"]}.items():
        rows = [{"problem": f"Find the number {i} of {name}.", "answer": answer} for i, answer in enumerate(answers)]
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
    where = ("--data.benchmarks.math500.source.folder", tmp_path, "--evaluation.folder", tmp_path / "out")
    succeed(*MATH, *quiet(tmp_path), *where, "--evaluation.sampling.max_new_tokens", "8")
    assert list(read_results(tmp_path / "out")["benchmarks"]) == ["math500", "aime24"]
