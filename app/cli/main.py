"""The command line: Lightning's CLI with this project's defaults, links, checks and one-line errors."""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

SUBCOMMANDS = ("fit", "validate")
USAGE = """usage: python main.py {fit,validate} --config FILE [--config FILE ...] [--KEY VALUE ...]

Train math-reasoning language models with GRPO-λ, and evaluate them.

  fit        run a stage of training: supervised (SFTModule) or GRPO-λ (GRPOLambdaModule)
  validate   run the benchmarks of the configuration

  --config FILE         later files and options override earlier ones
  --KEY VALUE           any key of the configuration, such as --model.objective.lam 0.98
  --print_config        print the resulting configuration and stop
  --dry_run             print batches and memory, or benchmarks and prompts, without loading a weight, and stop
  --ckpt_path FILE      resume fit from a checkpoint, or validate its weights;
                        last: the newest intact one of the run's name, or a new run

  python main.py fit --help          every key of fit, with its default
  python main.py fit --rollouts.help  the keys of one part
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit code: 0 where all went well; 2 for a configuration that cannot work; 1 for a run that had to stop
        (an engine that failed twice, a reward function that raised, Ctrl-C …); 128 + the number of another signal
        that stopped it (143 for SIGTERM), with one line on stderr; 141 where whatever read the output, such as head,
        had read enough.
    """
    try:
        code = _dispatched(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return 128 + signal.SIGPIPE
    return code


def _output_is_closed() -> bool:
    """Whether it is the standard output that nobody reads any more; what is still to be written then goes nowhere."""
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # which is told of errors all the same
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def _dispatched(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] not in SUBCOMMANDS:
        print(f"error: no command {arguments[0]}; there are {', '.join(SUBCOMMANDS)}", file=sys.stderr)
        return 2
    # Set before torch is imported: trainer, engine and graders share the cores, and spinning threads slow all.
    os.environ.setdefault("OMP_NUM_THREADS", "1" if (os.cpu_count() or 1) <= 4 else "4")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's C++ parts warn of what a user cannot change
    with _text_metrics_left_out():
        from app.cli.runner import run
    from app.console import speak_plainly

    speak_plainly()
    return run(arguments)


@contextlib.contextmanager
def _text_metrics_left_out() -> Iterator[None]:
    """torchmetrics, which Lightning imports, imports transformers for a text metric that nothing here uses: half of
    the time until a wrong key is named. While it is imported, it is told that transformers is not there."""
    from lightning_utilities.core import imports

    cache: Any = imports.RequirementCache

    check = cache._check_requirement

    def without_transformers(requirement: Any) -> None:
        if (requirement.requirement or "").startswith("transformers"):
            requirement.available, requirement.message = False, "left out"
        else:
            check(requirement)

    cache._check_requirement = without_transformers
    try:
        yield
    finally:
        cache._check_requirement = check
