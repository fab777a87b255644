"""What is read out of published chat templates, as the table in ``docs/templates.md``.

    python -m benchmarks.templates            writes the table
    python -m benchmarks.templates --check    says whether it would change, with exit code 1 if so

The templates are those that llama.cpp tests with, out of the source distribution of ``llama-cpp-python`` (75 MB,
fetched by pip into ``~/.cache/grpo-lambda`` at the first run, which takes minutes: pip prepares its metadata). Their
tokenizers are not there: each gets one of single bytes, whose special tokens are the markup that the template writes.
"""

import argparse
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from app.data.chat import ChatTemplate
from app.data.prompts import PromptEncoder, PromptSettings
from app.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
CACHE = Path.home() / ".cache" / "grpo-lambda"
PAGE = Path(__file__).parents[1] / "docs" / "templates.md"
FOLDER = "/vendor/llama.cpp/models/templates/"
MARKUP = re.compile(
    r"<[|｜][^<>|｜\n]{1,60}[|｜]>|<\|?/?[A-Za-z_][\w:.]*\|?>|\[/?[A-Z_]{3,}\]|〈\|\w+\|〉|\[e~\[|\]~!?b\[|<SPECIAL_\d+>"
)
BOS, EOS = "<BOS>", "<EOS>"
DAYS = ("2024-07-26", "2031-01-05")


@dataclass(frozen=True)
class Row:
    """What one template does.

    Attributes:
        name: of the template.
        opened: the marker of the thought that prompts end in, as asked without arguments.
        end: what it writes behind an assistant's words, up to the token that ends the turn.
        system: what becomes of ``system_prompt: ''``: "none" to leave out, "left out", or "stays".
        dated: whether the prompt depends on the day, unless that is pinned.
        refused: why a plain question cannot be rendered, in one line; empty where it can.
    """

    name: str
    opened: str = ""
    end: str = ""
    system: str = ""
    dated: bool = False
    refused: str = ""


def archive_path() -> Path:
    """Where the pinned source distribution lies once it was fetched."""
    return CACHE / f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"


def archive() -> Path:
    """The same, fetched where it is not there."""
    path = archive_path()
    if not path.is_file():
        source = ["--no-deps", "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}"]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *source, "--dest", CACHE], check=True)
    return path


def templates(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every template in the archive, by name."""
    with tarfile.open(path) as files:
        members = [each for each in files.getmembers() if FOLDER in each.name and each.name.endswith(".jinja")]
        for member in sorted(members, key=lambda each: each.name.casefold()):
            content = files.extractfile(member)
            assert content is not None
            yield Path(member.name).stem, content.read().decode()


def tokenizer_for(template: str) -> "PreTrainedTokenizerFast":
    """One of single bytes, whose special tokens are the template's markup."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=sorted(set(MARKUP.findall(template))),
        chat_template=template,
    )


def read(name: str, template: str) -> Row:
    """What the template does."""
    tokenizer = tokenizer_for(template)
    try:
        first, later = (PromptEncoder(PromptSettings(date=day), tokenizer).text("1 + 1") for day in DAYS)
    except ConfigurationError as error:
        return Row(name, refused=str(error).removeprefix(f"{error.key}: "))
    chat = ChatTemplate(tokenizer)
    end = tokenizer.decode(chat.turn_end)
    return Row(name, chat.thinking.opened, end, _empty_system(tokenizer, chat), first != later)


def _empty_system(tokenizer: "PreTrainedTokenizerFast", chat: ChatTemplate) -> str:
    if not chat.default_system:
        return "none"
    try:
        PromptEncoder(PromptSettings(system_prompt=""), tokenizer)
    except ConfigurationError:
        return "stays"
    return "left out"


@cache
def rows() -> list[Row]:
    """Of every template."""
    return [read(name, template) for name, template in templates(archive())]


def page() -> str:
    """The page, with its counts."""
    from transformers import __version__

    found = rows()
    shown = [row for row in found if not row.refused]
    opened, ended = sum(bool(row.opened) for row in shown), sum(bool(row.end) for row in shown)
    left_out, stays = (sum(row.system == what for row in shown) for what in ("left out", "stays"))
    lines = [
        "# Chat templates of published models",
        "",
        f"What is read out of the {len(found)} chat templates in {PACKAGE} {VERSION}, rendered by transformers "
        f"{__version__} without further",
        "arguments. Written by `python -m benchmarks.templates`; how it is found stands in `app/data/chat.py`.",
        "",
        f"- {len(shown)} render a plain question. The other {len(found) - len(shown)} need variables "
        "(`data.prompt.template_arguments`) and are refused in one line.",
        f"- {opened} end their prompts in an open thought, of which the grader knows ([grading](grading.md)).",
        f"- {ended} write a special token behind an assistant's words, which ends completions and is taught by SFT.",
        f"  The other {len(shown) - ended} leave the last turn open: the tokenizer's own end tokens are all there is,",
        "  or `model.policy.end_tokens`.",
        f"- {left_out + stays} write a system prompt of their own where none is given, and another in its place where",
        f"  one is. `system_prompt: ''` leaves it out of {left_out}; {stays} write it in the place of an empty one and",
        "  are refused.",
        f"- {sum(row.dated for row in shown)} print the day: `data.prompt.date` pins it.",
        "",
        "| Template | prompt ends in | turn ends with | its own system prompt | prints the day |",
        "|:---|:---|:---|:---|:---|",
        *(_line(row) for row in found),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    if row.refused:
        return f"| {row.name} | refused: {_cell(row.refused.partition(';')[0])} | | | |"
    dated = "yes" if row.dated else ""
    system = "" if row.system == "none" else row.system
    return f"| {row.name} | {_code(row.opened)} | {_code(row.end)} | {system} | {dated} |"


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("\n", "\\n").replace("|", "\\|")


def main() -> int:
    parser = argparse.ArgumentParser(description="The table of docs/templates.md.")
    parser.add_argument("--check", action="store_true", help="only say whether the page would change")
    check = parser.parse_args().check
    text = page()
    changed = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text
    if changed and not check:
        PAGE.write_text(text, encoding="utf-8")
    print(f"{len(rows())} templates; {PAGE.name} {'changed' if changed else 'is as it was'}")
    return int(changed and check)


if __name__ == "__main__":
    sys.exit(main())
