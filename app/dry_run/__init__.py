"""``--dry_run``: what a run would do and hold, without weights, processes or devices."""

from app.dry_run.evaluation import evaluation_dry_run
from app.dry_run.plan import Parts
from app.dry_run.report import dry_run

__all__ = ["Parts", "dry_run", "evaluation_dry_run"]
