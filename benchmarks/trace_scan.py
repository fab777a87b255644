"""Times the chunked trace scan, forward and backward, against the product with a T×T matrix.

    python -m benchmarks.trace_scan --shapes 64x4096 8x32768 --repeats 7

The matrix form is timed in float32, with the matrix built outside the clock; it is left out where the matrix
alone would take more than --matrix_limit_gib.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from app.algorithm.traces import STYLES, accumulate
from benchmarks.figures import Figure, add_json_option, write


def trace_matrix(length: int, q: float, style: str, device: str) -> Tensor:
    """M [T, T]: row t says how each token enters the trace at t."""
    positions = torch.arange(length, device=device)
    recent = q ** (positions.unsqueeze(1) - positions).clamp(min=0).float()
    return (recent if style == "recent" else torch.maximum(recent, q ** positions.float())).tril()


def median_ms(accumulated: Callable[[Tensor], Tensor], log_ratio: Tensor, warmup: int, repeats: int) -> float:
    """Median wall time of one forward and backward pass."""
    timings = []
    for _ in range(warmup + repeats):
        log_ratio.grad = None
        start = time.perf_counter()
        accumulated(log_ratio).sum().backward()
        if log_ratio.is_cuda:
            torch.cuda.synchronize()
        timings.append(1000 * (time.perf_counter() - start))
    return statistics.median(timings[warmup:])


def compare(rows: int, length: int, style: str, args: argparse.Namespace) -> tuple[str, float]:
    """One line of the report, and the scan's milliseconds."""
    log_ratio = (0.02 * torch.randn(rows, length, device=args.device)).requires_grad_()
    mask = torch.ones(rows, length, device=args.device)
    scan = median_ms(lambda x: accumulate(x, mask, args.q, style), log_ratio, args.warmup, args.repeats)
    line = f"[{rows:>3}, {length:>6}]  {style:<6}  scan {scan:9.2f} ms"
    if 4 * length**2 > args.matrix_limit_gib * 2**30:
        return f"{line}  matrix  left out ({4 * length**2 / 2**30:.0f} GiB)", scan
    matrix = trace_matrix(length, args.q, style, args.device).T.contiguous()
    dense = median_ms(lambda x: x @ matrix, log_ratio, args.warmup, args.repeats)
    return f"{line}  matrix {dense:9.2f} ms  ({dense / scan:.1f}×)", scan


def parse_shape(text: str) -> tuple[int, int]:
    rows, length = text.split("x")
    return int(rows), int(length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=[(64, 4096), (8, 32768)], metavar="BxT")
    parser.add_argument("--q", type=float, default=0.99)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--matrix_limit_gib", type=float, default=1.0, help="raise to time the matrix at T = 32768")
    add_json_option(parser)
    args = parser.parse_args()
    print(f"device {args.device}, {torch.get_num_threads()} threads, q = {args.q}, medians of {args.repeats}")
    figures: dict[str, Figure] = {}
    for rows, length in args.shapes:
        for style in STYLES:
            line, milliseconds = compare(rows, length, style, args)
            print(line)
            figures[f"{style}, {rows} rows of {length} tokens"] = Figure(milliseconds, "ms", "lower")
    write(args, "trace_scan", figures)


if __name__ == "__main__":
    main()
