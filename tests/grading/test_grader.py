"""The grader as a whole: verdicts, processes, limits, threads, forks."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from app.errors import ConfigurationError
from app.grading.grader import MAX_ANSWER_CHARS, Grader, Verdict

ROOT = Path(__file__).parents[2]
#: The first answer of a fresh process waits for imports; a verdict itself must not.
LIMIT_S = 10.0  # the wall limit is 1.5 s; other jobs may share the cores


def box(answer: str) -> str:
    return rf"so \boxed{{{answer}}}"


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=2) as grader:
        grader.grade([("x", box("y")), ("x^2", box("y"))])
        yield grader


def workers_of(grader: Grader) -> list[int]:
    return [worker.process.pid for worker in grader._pool._live]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_every_reason(grader: Grader) -> None:
    items = [
        ("5", box("5")),
        (r"\frac{1}{2}", box("0.5")),
        ("5", box("6")),
        ("5", "it is 5"),
        ("5", box("9" * (MAX_ANSWER_CHARS + 1))),
        ("f(x)=ax, where a is any integer", box("5")),
        ("f(x)=ax, where a is any integer", "nothing"),
        ("", box("5")),
        ("4.2", box("4.3"), {"error": "1e-1", "level": 3}),
    ]
    verdicts = grader.grade(items)
    reasons = "match match mismatch no_answer too_long unparseable_gold unparseable_gold unparseable_gold match"
    assert [verdict.reason for verdict in verdicts] == reasons.split()
    assert all(verdict.correct == (verdict.reason == "match") for verdict in verdicts)
    assert verdicts[1] == Verdict(True, "match", "0.5")
    assert verdicts[3].extracted is None


def test_a_literal_repetition_of_an_unreadable_gold_matches(grader: Grader) -> None:
    gold = "f(x)=ax, where a is any integer"
    assert grader.grade([(gold, box(gold))])[0].reason == "match"
    golds = ("1", "(2", "x", "a" * 9000, gold, r"\frac{1}{2}")
    assert grader.unparseable_golds([(each, {}) for each in golds]) == [1, 3, 4]


def test_equivalence_is_symmetric(grader: Grader) -> None:
    pairs = [("1/2", "0.5"), ("x", "y"), ("52", "52_8"), ("52_8", "52"), ("?!", "?!"), ("5 m", "5")]
    assert grader.equivalent(pairs) == [True, False, True, True, True, True]
    assert grader.equivalent([]) == []


def test_verdicts_come_in_order_and_are_the_same_again(grader: Grader) -> None:
    items = [(str(i), box(f"{i % 7}+{i - i % 7}")) if i % 3 else (str(i), box(f"{i}+1")) for i in range(120)]
    verdicts = grader.grade(items)
    assert [verdict.correct for verdict in verdicts] == [bool(i % 3) for i in range(120)]
    assert grader.grade(items) == verdicts


HOSTILE = [
    "9" * 1900,
    "9" * 100_000,
    "9^{9^{9^9}}",
    "(10^9)!",
    "10^9!",
    r"\binom{10^9}{5\cdot 10^8}",
    "10^{10^{10}}+1",
    r"\sin(10^{10^5})",
    "1e999999999",
    "e^{e^{e^{e^{10}}}}",
    "(" * 1900,
    "(" * 300 + "1" + ")" * 300,
    "{" * 900 + "}" * 900,
    r"\sqrt" * 300 + "2",
    r"\frac" * 300,
    "1+" * 900 + "1",
    "x^" * 800 + "2",
    "|" * 1900,
    r"\pm" * 500 + "1",
    ",".join([r"\pm 1"] * 200),
    r"\{" * 100 + r"\}" * 100,
    r"[0,1]\cup" * 200 + "[2,3]",
    r"\begin{pmatrix}" * 100,
    "1," * 900,
    "x" * 1900,
    "\x00",
    "\x00\x01\x02 5",
    "\ud800",
    "\udfff 5 \ud800",
    "\u202e5",
    "\U0010ffff" * 400,
    "__import__('os').system('touch /tmp/never')",
    r"\int_0^1 x^x \sin(e^x) dx",
    r"\sum_{k=1}^{10^{10}} k!",
    r"\prod_{k=1}^{10^8} k",
    r"\lim_{n\to\infty}\sum_{k=1}^{n}\frac{n!}{k!}",
    "0/0",
    r"\log_{1}5",
]


@pytest.mark.slow
@pytest.mark.parametrize("gold", ["12", "x+1", r"\sum_{k=1}^{n} k"])
def test_hostile_answers_get_a_verdict_in_time(grader: Grader, gold: str) -> None:
    for answer in HOSTILE:
        _wait_for_a_ready_worker(grader)
        started = time.monotonic()
        verdict = grader.grade([(gold, box(answer))])[0]
        assert time.monotonic() - started < LIMIT_S, answer[:40]
        assert verdict.reason in ("mismatch", "timeout", "too_long", "no_answer"), answer[:40]
    assert grader.grade([("x^2", box(r"x \cdot x"))])[0].correct
    assert not Path("/tmp/never").exists()


def _wait_for_a_ready_worker(grader: Grader) -> None:
    """Gives a replacement time to start: the limit is on a verdict, not on a start on a loaded machine."""
    deadline = time.monotonic() + 60
    while not any(worker.is_ready() for worker in list(grader._pool._idle)) and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed{" * 100_000,
        r"\boxed{5}" * 50_000 + r"\boxed{6}",
        r"\boxed" * 100_000,
        "{" * 1_000_000,
        "<think>" * 100_000,
        "</think>" * 100_000,
        "\\" * 1_000_001,
        r"\boxed{" * 5000 + "5" + "}" * 5000,
    ],
    ids=lambda text: f"{text[:9]!r}x{len(text)}",
)
def test_hostile_completions_are_searched_in_linear_time(grader: Grader, completion: str) -> None:
    started = time.monotonic()
    assert not grader.grade([("5", completion)])[0].correct
    assert time.monotonic() - started < LIMIT_S


def test_hostile_gold_answers_do_no_harm(grader: Grader) -> None:
    golds = [answer for answer in HOSTILE if len(answer) > 1000 or "\ud800" in answer or "\x00" in answer]
    verdicts = grader.grade([(gold, box("5")) for gold in golds])
    assert not any(verdict.correct and verdict.extracted != "5" for verdict in verdicts)


def test_a_stopped_worker_is_killed_and_replaced() -> None:
    with Grader(workers=1, timeout_s=0.5) as grader:
        assert grader.grade([("x", box("x+0"))])[0].correct
        (stopped,) = workers_of(grader)
        os.kill(stopped, signal.SIGSTOP)
        assert grader.grade([("x", box("x+x-x"))])[0].reason == "timeout"
        assert not alive(stopped)
        assert grader.restarts == 1
        assert grader.grade([("x", box("x+x-x"))])[0].reason == "match"  # the timeout was not remembered


def test_a_worker_that_does_not_come_back_to_its_interpreter_is_killed() -> None:
    """A stopped process handles no signal of Python's, as one in a long call of a C library does not."""
    with Grader(workers=1, timeout_s=0.5) as grader:
        grader.grade([("x", box("x+0"))])
        (stuck,) = workers_of(grader)
        os.kill(stuck, signal.SIGSTOP)
        assert grader.grade([("x", box("x+2"))])[0].reason == "timeout"
        assert not alive(stuck)
        assert grader.grade([("x", box("x+1"))])[0].reason == "mismatch"


def test_a_killed_worker_harms_only_its_own_answer() -> None:
    with Grader(workers=2) as grader:
        grader.grade([("x", box("x+0")), ("y", box("y+0"))])
        items = [("x^2", box(f"x^2+{i}-{i}")) for i in range(200)]
        timer = threading.Timer(0.02, lambda: os.kill(workers_of(grader)[0], signal.SIGKILL))
        timer.start()
        verdicts = grader.grade(items)
        timer.join()
        assert sum(verdict.reason != "match" for verdict in verdicts) <= 1


def test_memory_of_a_worker_is_bounded() -> None:
    with Grader(workers=1, memory_mb=512) as grader:
        grader.grade([("x", box("x+0"))])
        (pid,) = workers_of(grader)
        limits = Path(f"/proc/{pid}/limits").read_text()
        line = next(line for line in limits.splitlines() if line.startswith("Max address space"))
        assert line.split()[3] == str(512 << 20)


def test_many_threads_at_once(grader: Grader) -> None:
    def grade(index: int) -> bool:
        items = [(f"x+{index}", box(f"{index}+x")), (f"x+{index}", box(f"{index + 1}+x"))]
        return [verdict.correct for verdict in grader.grade(items)] == [True, False]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(grade, range(60)))


class _GradedRows(Dataset):
    """Grades in the data loader's process, with a grader made in the parent."""

    def __init__(self, grader: Grader) -> None:
        self.grader = grader

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        verdicts = self.grader.grade([(f"2x+{index}", box(f"x+x+{index}")), ("x", box(f"x^{index + 2}"))])
        return torch.tensor([verdict.correct for verdict in verdicts])


def test_within_data_loader_workers(grader: Grader) -> None:
    """Data-loader workers are daemonic forks: they may have no multiprocessing children, and share no threads."""
    before = set(workers_of(grader))
    loader = DataLoader(_GradedRows(grader), batch_size=2, num_workers=2, multiprocessing_context="fork")
    assert torch.cat(list(loader)).tolist() == [[True, False]] * 8
    assert before <= set(workers_of(grader))
    assert all(map(alive, before))
    assert grader.grade([("3x", box("x+2x"))])[0].correct


def test_close_ends_every_process_and_the_grader_starts_again() -> None:
    grader = Grader(workers=2)
    assert workers_of(grader) == []  # nothing runs before it is needed
    assert grader.grade([("5", box("5"))])[0].correct
    assert workers_of(grader) == []  # plain numbers need no process
    grader.grade([("x", box("x+0")), ("y", box("y+0"))])
    pids = workers_of(grader)
    assert len(pids) == 2
    grader.close()
    grader.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # reaped, no zombies
    assert grader.grade([("x", box("x+1-1"))])[0].correct
    grader.close()


ORPHAN = """
import os, sys
from app.grading.grader import Grader
grader = Grader(workers=2)
grader.grade([("x", r"\\boxed{x+0}"), ("y", r"\\boxed{y+0}")])
print(*[worker.process.pid for worker in grader._pool._live], flush=True)
END
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise KeyError", "os.kill(os.getpid(), 9)"])
def test_no_worker_outlives_its_parent(end: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", ORPHAN.replace("END", end)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    pids = [int(pid) for pid in run.stdout.split()]
    assert len(pids) == 2, run.stderr
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_grading_processes_do_not_import_torch_or_transformers() -> None:
    code = "import sys; from app.grading.pool import worker; worker._preload(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "lightning"} & set(modules.split())
    assert "sympy" in modules.split()


def test_the_trainers_process_imports_no_symbolic_library() -> None:
    code = (
        "import sys; from app.grading import grader; from app.rewards import correctness, weighted; print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"sympy", "math_verify", "mpmath"} & set(modules.split())


@pytest.mark.parametrize("settings", [{"workers": 0}, {"timeout_s": 0}, {"timeout_s": 5}, {"memory_mb": 10}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        Grader(**settings)  # type: ignore[arg-type]


def test_a_signal_to_the_whole_job_leaves_workers_to_their_parent() -> None:
    """Schedulers send it to every process: a worker that it ended would cost a right answer its verdict."""
    with Grader(workers=1) as grader:
        grader.grade([("x", box("y"))])
        workers = workers_of(grader)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(workers[0], number)
        assert grader.grade([("x^2", box(r"x \cdot x"))])[0].correct
        assert workers_of(grader) == workers
