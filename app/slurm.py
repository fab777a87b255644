"""A job that SLURM puts back into its queue goes on from the checkpoint that it left, without being told which."""

import json
import os
import subprocess
import sys
from pathlib import Path


def note_checkpoint(folder: Path, checkpoint: Path) -> None:
    """Writes down for this job's next start where this command's run goes on."""
    note = {"arguments": sys.argv[1:], "checkpoint": str(checkpoint.absolute())}
    _note_file(folder).write_text(json.dumps(note, indent=1))


def noted_checkpoint(folder: Path) -> str | None:
    """The checkpoint that the same command left in the same job before SLURM restarted it; None without one.

    Another command of the job's script, and another job with the same folder, never see it.
    """
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) == 0 or not _note_file(folder).exists():
        return None
    note = json.loads(_note_file(folder).read_text())
    return note["checkpoint"] if note["arguments"] == sys.argv[1:] else None


def requeue_job() -> str:
    """Asks SLURM to start this job again once there is room; returns a line that says what came of it."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"job {job} is not requeued, submit it again: scontrol cannot be run ({error})"
    if done.returncode:
        return f"job {job} is not requeued, submit it again: scontrol says {done.stderr.strip()!r}"
    return f"job {job} is requeued and will go on from there"


def _note_file(folder: Path) -> Path:
    return folder / f"slurm-{os.environ['SLURM_JOB_ID']}.json"
