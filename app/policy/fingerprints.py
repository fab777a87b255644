"""Which weights a policy starts from, as a short text that two files of the same content share.

A checkpoint holds what is trained. The frozen rest, the reference policy and what adapters lie around, is read or
drawn again by a resumed run: this tells whether it is still the same.
"""

import json
import zlib
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.policy.sources import expanded, loading
from app.storage.checkpoints import SUFFIX
from app.storage.checksums import LIST, archive_fingerprint, list_files
from app.storage.shards import META

if TYPE_CHECKING:
    from app.policy.settings import PolicySettings

_WEIGHTS = ("*.safetensors", "*.bin")


def source_fingerprint(settings: "PolicySettings", seed: int) -> str | None:
    """A fingerprint of the weights at ``settings.path``, or of what draws new ones; of a hub id, its commit.

    Reads the weights' files, unless a list of their checksums is there, which is compared before (see ``verify``).

    Returns:
        None where ``settings.verify`` is false: nothing is read then.
    """
    if not settings.verify:
        return None
    if settings.path is None:
        return f"drawn:{_digest([settings.config, _plain(settings.tokenizer), seed])}"
    path = Path(settings.path).expanduser()
    if settings.path.endswith(SUFFIX):
        return f"checkpoint:{_of_checkpoint(path)}"
    if path.is_dir():
        names = sorted(file.name for pattern in _WEIGHTS for file in path.glob(pattern))
        return f"files:{_digest(_entries(path, names))}"
    return f"commit:{_commit(settings)}"


def same_base(settings: "PolicySettings", seed: int, saved: str | None) -> bool:
    """Whether the weights that ``settings`` name are those with the fingerprint ``saved``, as far as is known."""
    own = source_fingerprint(settings, seed)
    return own is None or saved is None or own == saved


def _of_checkpoint(path: Path) -> str:
    if not path.is_dir():
        return archive_fingerprint(path)
    names = sorted(file.name for file in path.glob("*.distcp"))
    return _digest([_entries(path, names), archive_fingerprint(path / META)])


def _entries(folder: Path, names: list[str]) -> dict[str, Any]:
    """Sizes and checksums of files: out of the folder's list where it has one."""
    listed = json.loads((folder / LIST).read_text())["files"] if (folder / LIST).is_file() else {}
    rest = [name for name in names if name not in listed]
    return {name: listed[name] for name in names if name in listed} | list_files(folder, rest)


def _commit(settings: "PolicySettings") -> str:
    """The commit of a hub id, by which the cache names the folder of its files."""
    from transformers.utils import CONFIG_NAME, cached_file

    source = settings.path or ""
    with loading("configuration", source, "policy.path"):
        found = cached_file(expanded(source), CONFIG_NAME, revision=settings.revision)
    return Path(str(found)).parent.name


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _digest(value: Any) -> str:
    return f"{zlib.crc32(json.dumps(value, sort_keys=True, default=str).encode()):08x}"
