"""Builds Lightning's CLI for this project and runs it. Imported late: Lightning alone takes seconds to import."""

import sys
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from app.cli.checks import check_audit, check_parts
from app.cli.errors import Source, check_keys, parameters, read_sources
from app.cli.failures import ending
from app.cli.run_logger import RunLogger
from app.cli.starting_point import LAST, continued_run, places_of, starting_point
from app.data.sources import HubSource, JsonLinesSource, RegisteredSource, SyntheticSource
from app.engines.lost_ranks import end_with_starter
from app.engines.transformers_engine import TransformersEngine
from app.engines.vllm.engine import VLLMEngine
from app.errors import ConfigurationError
from app.policy.checkpoints import verify_source
from app.rewards.correctness import CorrectnessReward
from app.rewards.format import FormatReward
from app.rewards.imported import ImportedReward
from app.rewards.overlong import OverlongPenalty
from app.slurm import noted_checkpoint
from app.stopping import STOP, StopRequested
from callbacks import (
    BenchmarkEvaluation,
    CollapseAlarms,
    CompletionsTable,
    CreditAudit,
    CreditPage,
    Dashboard,
    HFExport,
    IterationCheckpoint,
    IterationProgress,
    LostRank,
    RolloutCallback,
    RunSummary,
    StopOnSignal,
    TraceLogging,
)
from datamodules import MathPromptDataModule, SFTDataModule
from datamodules.base import ProblemDataModule
from modules import GRPOLambdaModule, SFTModule
from modules.policy_module import PolicyModule

# A configuration may name a class that is imported by its bare name, such as `class_path: GRPOLambdaModule`.
BY_BARE_NAME = (
    *(GRPOLambdaModule, SFTModule, MathPromptDataModule, SFTDataModule),
    *(TransformersEngine, VLLMEngine),
    *(CorrectnessReward, FormatReward, OverlongPenalty, ImportedReward),
    *(JsonLinesSource, HubSource, RegisteredSource, SyntheticSource),
)
# Each is a key of its own, so that `--rollouts.group_size 4` works; null (the default) leaves it out.
# In the order in which the trainer asks them: an audit is over before the iteration's rollout begins to be timed.
CALLBACKS: dict[str, type] = {
    "audit": CreditAudit,
    "rollouts": RolloutCallback,
    "dashboard": Dashboard,  # its restart of the curves comes before an evaluation that is made up for
    "evaluation": BenchmarkEvaluation,
    "traces": TraceLogging,
    "completions": CompletionsTable,
    "credit": CreditPage,
    "alarms": CollapseAlarms,
    "checkpoint": IterationCheckpoint,
    "export": HFExport,
}
ROOT = "runs"
"""Where runs are kept, unless ``trainer.default_root_dir`` says otherwise."""
SEEDED = (
    "model.init_args.seed",
    "data.init_args.seed",
    "rollouts.init_args.seed",
    "evaluation.init_args.seed",
    "audit.init_args.seed",
)
TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 1,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": -1,
    "check_val_every_n_epoch": None,
    "log_every_n_steps": 1,
}


class OneLineParser(LightningArgumentParser):
    """Raises what is wrong instead of printing pages of usage."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        raise ConfigurationError(message) from ex


class GRPOLambdaCLI(LightningCLI):
    """LightningCLI with a key for each callback and one seed for everything."""

    subcommand: Any

    _continued: int | None = None  # the version_<n> whose run goes on
    wanted: str = ""  # building a parser takes seconds: only the one that is asked for is built

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:  # type: ignore[override]
        return {cls.wanted: LightningCLI.subcommands()[cls.wanted]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for key, callback in CALLBACKS.items():
            parser.add_argument(f"--{key}", type=callback | None, default=None)
        for target in SEEDED:
            parser.link_arguments("seed_everything", target)
        parser.add_argument("--name", default="run", help="the run's folder below trainer.default_root_dir")
        parser.add_argument("--dry_run", action="store_true", help="print what would be done and held, and stop there")

    def _parse_ckpt_path(self) -> None:
        """Left out on purpose: a checkpoint's saved arguments would silently override the configuration."""

    def instantiate_classes(self) -> None:
        """Checks the parts together before the trainer, which may start processes, is made."""
        self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        rollouts, evaluation, audit = (self._get(self.config_init, key) for key in ("rollouts", "evaluation", "audit"))
        check_parts(self.subcommand, self.model, self.datamodule, rollouts, evaluation)
        if audit is not None:
            check_audit(self.subcommand, audit, self.datamodule, rollouts)
        if self._get(self.config_init, "dry_run"):
            self._dry_run()
        else:
            self._settle_sources()
            self.trainer = self.instantiate_trainer()

    def _settle_sources(self) -> None:
        """Looks at the files that the run starts from; a job that SLURM has restarted goes on, whatever its command
        says of an older checkpoint."""
        fit, policy = self.subcommand == "fit", self.model.policy_settings
        if rank_zero_only.rank == 0:
            verify_source(policy)
        root = Path(self._get(self.config_init, "trainer")["default_root_dir"] or ROOT)
        given, noted = self._get(self.config_init, "ckpt_path"), noted_checkpoint(root) if fit else None
        if noted is not None:
            rank_zero_info(f"SLURM has restarted this job: it goes on from {noted}")
            given = noted
        start = starting_point(None if given is None else str(given), self._places(root, given), fit, policy.verify)
        self.config_init[self.subcommand]["ckpt_path"] = start
        if fit and start is not None:
            meant = given == LAST or noted is not None
            self._continued = continued_run(Path(start), root / self._get(self.config_init, "name"), meant)

    def _places(self, root: Path, given: Any) -> list[Path]:
        """Folders in which ``--ckpt_path last`` is looked for."""
        checkpoint, logger = (self._get(self.config_init, key) for key in ("checkpoint", "trainer"))
        folder, logger = getattr(checkpoint, "folder", None), logger.get("logger")
        if given != LAST or folder is not None or logger in (None, True):
            return places_of(root, self._get(self.config_init, "name"), folder)
        if logger is False:
            return [root / "checkpoints"]
        raise ConfigurationError("last is looked for in it: with a logger of your own, set it", key="checkpoint.folder")

    def _dry_run(self) -> None:
        from app.dry_run import Parts, dry_run, evaluation_dry_run

        parts = {
            key: self._get(self.config_init, key) for key in ("rollouts", "evaluation", "audit", "checkpoint", "export")
        }
        trainer, name = dict(self._get(self.config_init, "trainer")), self._get(self.config_init, "name")
        given = Parts(module=self.model, data=self.datamodule, trainer=trainer, name=name, **parts)
        print(dry_run(given) if self.subcommand == "fit" else evaluation_dry_run(given))
        self.subcommand = None  # LightningCLI runs the subcommand next, where there is one

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        config = dict(self._get(self.config_init, "trainer"))
        config["default_root_dir"] = config.get("default_root_dir") or ROOT
        if config.get("logger") in (None, True):
            config["logger"] = RunLogger(
                config["default_root_dir"], self._get(self.config_init, "name"), self._continued
            )
        given_parts = {key: self._get(self.config_init, key) for key in CALLBACKS}
        standing = {
            "alarms": given_parts["alarms"] or CollapseAlarms(),
            "dashboard": given_parts["dashboard"] or Dashboard(),
        }
        callbacks = [*(given_parts | standing).values()]
        given_ones = (callback for callback in callbacks if callback is not None)
        callbacks = [StopOnSignal(), LostRank(), *given_ones, *[RunSummary()] * (self.subcommand == "fit")]
        # Lightning's own checkpoint callback, which it adds where there is none, counts optimiser steps.
        given = callbacks + (config.get("callbacks") or [])
        config["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in given)
        if config.get("enable_progress_bar") is not False:
            callbacks.append(IterationProgress())
        try:
            return self._instantiate_trainer(config | kwargs, callbacks)
        except (ValueError, MisconfigurationException) as error:  # such as a strategy that cannot run on this device
            raise ConfigurationError(" ".join(str(error).split()), key="trainer") from error


def run(arguments: list[str]) -> int:
    """See :func:`app.cli.main`."""
    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    end_with_starter()
    sources: list[Source] = []
    try:
        GRPOLambdaCLI.wanted = arguments[0]
        sources = read_sources(arguments[1:])
        check_keys(sources, _top_level(arguments[0]))
        _start(arguments)
    except StopRequested as stop:
        rank_zero_only(print)(stop, file=sys.stderr)
        STOP.finish()
        return stop.exit_code
    except Exception as error:
        said = ending(error, sources)
        if said is None:
            raise
        print(f"error: {said[0]}", file=sys.stderr)
        return said[1]
    return 0


def _start(arguments: list[str]) -> None:
    GRPOLambdaCLI(
        PolicyModule,
        ProblemDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=OneLineParser,
        parser_kwargs={"parser_mode": "omegaconf+"},
        trainer_defaults=TRAINER_DEFAULTS,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=arguments,
    )


def _top_level(subcommand: str) -> dict[str, Any]:
    """Key → type, of everything that may stand at the top of a configuration."""
    callbacks = {key: callback | None for key, callback in CALLBACKS.items()}
    own = {"trainer": Trainer, "model": PolicyModule, "data": ProblemDataModule, **callbacks}
    method = parameters(getattr(Trainer, subcommand))
    skipped = LightningCLI.subcommands()[subcommand] | {"self"}
    rest = {key: kind for key, kind in method.items() if key not in skipped}
    return {**own, **rest, "seed_everything": int, "name": str, "dry_run": bool}
