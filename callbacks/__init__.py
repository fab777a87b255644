"""Lightning callbacks: rollouts, evaluation, logging, checkpoints and export."""

from callbacks.benchmark_evaluation import BenchmarkEvaluation
from callbacks.collapse_alarms import CollapseAlarms
from callbacks.completions_table import CompletionsTable
from callbacks.credit_audit import CreditAudit
from callbacks.credit_page import CreditPage
from callbacks.dashboard import Dashboard
from callbacks.hf_export import HFExport
from callbacks.iteration_checkpoint import IterationCheckpoint
from callbacks.lost_rank import LostRank
from callbacks.progress import IterationProgress
from callbacks.rollouts import RolloutCallback
from callbacks.run_summary import RunSummary
from callbacks.stop_on_signal import StopOnSignal
from callbacks.trace_logging import TraceLogging

__all__ = [
    "BenchmarkEvaluation",
    "CollapseAlarms",
    "CompletionsTable",
    "CreditAudit",
    "CreditPage",
    "Dashboard",
    "HFExport",
    "IterationCheckpoint",
    "IterationProgress",
    "LostRank",
    "RolloutCallback",
    "RunSummary",
    "StopOnSignal",
    "TraceLogging",
]
