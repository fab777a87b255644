"""Takes the pictures of ``docs/dashboards.md``: real runs, TensorBoard, and a headless Chromium that looks at it.

    .venv/bin/python -m benchmarks.screenshots --warm-start runs/quickstart/warm-start/hf

Needs the development tools (``make setup-dev``) for playwright, and a Chromium of the system's (``--chromium``).
"""

import argparse
import itertools
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from app.cli.main import main as command_line
from app.console import program

CONFIG = "configs/quickstart/grpo_lambda.yaml"
FOLDED = {"traces": ("Learning", "Policy"), "speed": ("Learning", "Policy", "Traces", "Rollouts")}
"""Pictures of the Custom Scalars page, and the categories that are folded in them."""
NAMELESS = """() => {
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE && node.data.startsWith("/")) node.parentNode.textContent = "runs";
    for (const child of [...node.childNodes, ...(node.shadowRoot ? [node.shadowRoot] : [])]) walk(child);
  };
  walk(document.body);
}"""
"""Puts a plain name in the place of the folder that this machine has the runs in."""
COLOURS = 128
"""Of a picture: pages of few colours lose nothing that is seen."""


def main() -> int:
    """Learns what is not there yet, and takes all pictures."""
    options = _options()
    shown, sweep = options.folder / "shown", options.folder / "sweep"
    if not shown.is_dir():
        _learn(options, shown, "grpo-lambda", ["--data.iterations", str(options.iterations)])
    if not sweep.is_dir():
        _sweep(options, sweep)
    options.output.mkdir(parents=True, exist_ok=True)
    with browser(options.chromium) as chromium:
        with tensorboard(shown) as address:
            for scheme in ("light", "dark"):
                page = opened(chromium, f"{address}/#custom_scalars", scheme, height=1500)
                keep(page, options.output / f"custom_scalars_{scheme}.png")
            for name, folded in FOLDED.items():
                page = opened(chromium, f"{address}/#custom_scalars", "light", height=1500)
                for category in folded:
                    page.get_by_text(category, exact=True).first.click()
                page.wait_for_timeout(4000)
                keep(page, options.output / f"custom_scalars_{name}.png")
            keep(opened(chromium, f"{address}/#histograms", "light", height=1000), options.output / "histograms.png")
        with tensorboard(sweep) as address:
            keep(
                opened(chromium, f"{address}/#hparams", "light", height=900, width=1800), options.output / "hparams.png"
            )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshots", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/screenshots"), help="the runs; those there are kept")
    parser.add_argument("--warm-start", type=Path, default=Path("runs/quickstart/warm-start/hf"))
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--iterations", type=int, default=40, help="of the run that is shown")
    parser.add_argument("--runs", type=int, default=20, help="short runs for the HParams page")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium", help="the browser")
    return parser.parse_args()


def _learn(options: argparse.Namespace, folder: Path, name: str, extra: list[str]) -> None:
    where = ["--model.policy.path", str(options.warm_start), "--trainer.default_root_dir", str(folder), "--name", name]
    small = ["--data.benchmarks.heldout.source.init_args.size", "64", "--trainer.val_check_interval", "5"]
    code = command_line(["fit", "--config", CONFIG, *where, *small, "--export", "null", "--checkpoint", "null", *extra])
    if code:
        raise SystemExit(f"the run {name} failed with exit code {code}")


def _sweep(options: argparse.Namespace, folder: Path) -> None:
    """Short runs of different settings."""
    methods = [("trace", "recent"), ("trace", "both"), ("weight", "recent"), ("weight", "both"), ("terminal", "recent")]
    settings = list(itertools.product(methods, (1e-4, 4e-4), (0.9, 0.98)))[: options.runs]
    for number, ((application, style), lr, lam) in enumerate(settings):
        objective = ["--model.objective.application", application, "--model.objective.style", style]
        objective += ["--model.objective.lam", str(lam), "--model.optimizer.lr", str(lr)]
        size = ["--data.iterations", "5", "--data.prompts_per_iteration", "8", "--traces", "null"]
        _learn(options, folder, f"run-{number:02d}", [*objective, *size])


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of TensorBoard on ``folder``, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program("tensorboard"), "--logdir", str(folder), "--port", str(port), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                runs = urllib.request.urlopen(f"{address}/data/runs", timeout=5).read()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                runs = b"[]"
            if runs.strip() != b"[]":
                break
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


@contextmanager
def browser(executable: str) -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


def opened(chromium: Any, address: str, scheme: str, height: int, width: int = 1130) -> Any:
    """A page in a light or dark ``scheme``, after its charts are drawn."""
    page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(address)
    page.wait_for_timeout(12_000)
    page.evaluate(NAMELESS)
    return page


def keep(page: Any, path: Path) -> None:
    """Writes what the page shows, as a picture of few colours."""
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    page.close()


if __name__ == "__main__":
    sys.exit(main())
