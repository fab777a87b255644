"""What SLURM does for a job of two tasks on one machine: ``python -m tests.distributed.srun PROGRAM ARGUMENTS …``.

Tasks find their places in SLURM's variables, signals to the job reach all of them, and their largest exit code is the
job's.
"""

import os
import signal
import socket
import subprocess
import sys
from typing import Any

TASKS = 2


def variables(rank: int, port: int) -> dict[str, str]:
    own = {"PROCID": rank, "LOCALID": rank, "NODEID": 0, "NTASKS": TASKS, "NTASKS_PER_NODE": TASKS, "NNODES": 1}
    named = {f"SLURM_{name}": str(value) for name, value in own.items()}
    return {**os.environ, **named, "SLURM_JOB_NAME": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def main() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *sys.argv[1:]]
    tasks = [subprocess.Popen(command, env=variables(rank, port)) for rank in range(TASKS)]

    def pass_on(number: int, frame: Any) -> None:
        for task in tasks:
            task.send_signal(number)

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, pass_on)
    return max(task.wait() for task in tasks)


if __name__ == "__main__":
    sys.exit(main())
