"""Which grader gave a verdict, as a hash that no change of it can leave as it was."""

import hashlib
from importlib import metadata, resources
from importlib.resources.abc import Traversable

PACKAGES = ("math-verify", "latex2sympy2-extended", "sympy")
"""What judges besides the code of ``app.grading``."""


def grader_version() -> str:
    """16 hexadecimal digits over every file of ``app.grading`` and the versions of :data:`PACKAGES`."""
    return hash_grader(resources.files("app.grading"), {name: metadata.version(name) for name in PACKAGES})


def hash_grader(code: Traversable, versions: dict[str, str]) -> str:
    """As :func:`grader_version`, of the given folder; compiled and hidden files are passed over."""
    total = hashlib.sha256(repr(sorted(versions.items())).encode())
    _add(total, code, "")
    return total.hexdigest()[:16]


def _add(total: "hashlib._Hash", folder: Traversable, prefix: str) -> None:
    for each in sorted(folder.iterdir(), key=lambda found: found.name):
        if each.name.startswith((".", "__pycache__")):
            continue
        if each.is_dir():
            _add(total, each, f"{prefix}{each.name}/")
        else:
            content = hashlib.sha256(each.read_bytes()).hexdigest()
            total.update(f"{prefix}{each.name} {content}\n".encode())
