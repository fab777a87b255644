"""How a policy was asked when it was trained: kept beside its weights, so that it is asked so again."""

import json
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

from app.data.prompts import PromptSettings
from app.errors import ConfigurationError
from app.policy.checkpoints import is_checkpoint, saved_prompt

PROMPT_RECORD = "prompt.json"
"""In the folder of an exported policy."""
NOT_OF_THE_POLICY = ("fallback", "template_file", "max_prompt_tokens", "overlong")
"""Settings that say nothing of how a policy is asked; a file's text is kept as ``template``."""


def prompt_record(settings: PromptSettings) -> dict[str, Any]:
    """JSON-able; what of the settings a later run needs in order to ask as this one did."""
    kept = {name: value for name, value in asdict(settings).items() if name not in NOT_OF_THE_POLICY}
    return {**kept, "style": settings.style or settings.fallback, "template": settings.own_template()}


def write_prompt_record(folder: Path, settings: PromptSettings) -> None:
    """Writes the record into the folder of an exported policy."""
    (folder / PROMPT_RECORD).write_text(json.dumps(prompt_record(settings), indent=2) + "\n", encoding="utf-8")


def read_prompt_record(path: str | None) -> PromptSettings | None:
    """How the policy at ``path`` (an HF folder, or a checkpoint of fit) was asked; None where that is not recorded.

    Raises:
        ConfigurationError: the record cannot be read.
    """
    if path is None:
        return None
    file = Path(path).expanduser() / PROMPT_RECORD
    try:
        if is_checkpoint(path):
            saved = saved_prompt(path)
        else:
            saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        return None if saved is None else PromptSettings(**saved)
    except (TypeError, ValueError) as error:  # ConfigurationError is a ValueError
        raise ConfigurationError(
            f"the record of the policy's prompts in {path} cannot be read ({error}): delete {PROMPT_RECORD} there and "
            "give data.prompt.style",
            key="policy.path",
        ) from error


def as_trained(settings: PromptSettings, path: str | None) -> tuple[PromptSettings, str]:
    """``settings`` with what they leave open taken from the policy's record, and what still differs from it, in words.

    Args:
        settings: of the run; they leave how to ask open where they name neither style nor template.
        path: of the policy.

    Raises:
        ConfigurationError: the record cannot be read.
    """
    record = read_prompt_record(path)
    if record is None:
        return settings, ""
    if settings.style is None and settings.own_template() is None:
        settings = replace(record, **{name: getattr(settings, name) for name in _changed(settings)})
    own, trained = prompt_record(settings), prompt_record(record)
    different = [f"{name} {own[name]!r}, in training {trained[name]!r}" for name in own if own[name] != trained[name]]
    return settings, "; ".join(different)


def _changed(settings: PromptSettings) -> list[str]:
    """The fields whose value is not the default."""
    defaults = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for each in fields(settings)
    }
    return [name for name, default in defaults.items() if getattr(settings, name) != default]
