"""Benchmark the dense modules: SPPF's max pooling against all exact variants, and ASPP against torchvision's.

    python benchmarks/dense.py [--what sppf|aspp|sizes|all] [--threads 1] [--budget 0.3] [--json FILE]

All variants of a case are checked against each other and timed alternately in one process. Times are first quartiles,
because disturbances only add time. With one thread, the CPU time of the process is measured, which other load affects
least. `auto / best` is the time of `sliding_max`, including its checks and its choice of a variant, divided by the time
of the fastest variant.
"""

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.segmentation import deeplabv3

from sppnet.layers.aspp import ASPP
from sppnet.ops.sliding_max import VARIANTS, pick_variant, sliding_max
from sppnet.segment.model import create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.tools.bench import environment, measure

KERNELS = (5, 9, 13)
TARGET = 1.1
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PASSES = {False: "forward", True: "forward + backward"}
MAPS = [  # with half the channels
    (1, 128, 7, 7),
    (1, 256, 13, 13),
    (1, 512, 10, 10),
    (1, 1024, 7, 10),
    (1, 256, 20, 20),
    (1, 512, 20, 20),
    (1, 320, 12, 40),
    (1, 256, 40, 40),
    (1, 128, 80, 80),
    (8, 512, 7, 7),
    (8, 256, 13, 13),
    (8, 256, 20, 20),
    (8, 128, 40, 40),
]
ATROUS = [  # map, rates; torchvision cannot train on a single image
    ((2, 2048, 33, 33), (12, 24, 36)),
    ((2, 2048, 65, 65), (12, 24, 36)),
    ((8, 320, 23, 30), (6, 12, 18)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["sppf", "aspp", "sizes", "all"], default="all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=0.3, help="seconds per case; at least 3 rounds")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="dtype of the maps for sppf"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    content: dict[str, Any] = {**environment(), "dtype": arguments.dtype}
    print(f"{content['machine']['cpu']}, {arguments.threads} threads, torch {torch.__version__}, {arguments.dtype}")
    if arguments.what in ("sppf", "all"):
        content["sppf"] = time_maxima(arguments.budget, getattr(torch, arguments.dtype))
    if arguments.what in ("aspp", "all"):
        content["aspp"] = time_aspp(arguments.budget)
    if arguments.what in ("sizes", "all"):
        check_sizes()
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


def time_maxima(budget: float, dtype: torch.dtype) -> list[dict[str, Any]]:
    print(f"\n### SPPF {KERNELS}: ms for pooling and concatenation\n")
    print(f"| layout | pass | map | picked | auto | {' | '.join(VARIANTS)} | auto / best |")
    print("|---" * (6 + len(VARIANTS)) + "|")
    rows = []
    for (name, layout), backward, shape in itertools.product(LAYOUTS.items(), PASSES, MAPS):
        x = torch.randn(shape).to(dtype).contiguous(memory_format=layout).requires_grad_(backward)
        variants: dict[str, Callable[[], Tensor]] = {"auto": lambda x=x: torch.cat([x, *sliding_max(x, KERNELS)], 1)}
        for variant, pool in VARIANTS.items():
            variants[variant] = lambda x=x, pool=pool: torch.cat([x, *pool(x, KERNELS)], 1)
        with torch.inference_mode(not backward):
            picked, expected = pick_variant(x), variants["parallel"]().detach()
            for variant, call in variants.items():
                if not torch.equal(call(), expected):
                    raise SystemExit(f"{variant} is not exact on {shape}, {name}")
            if backward:
                variants = {variant: _with_backward(call, x, expected) for variant, call in variants.items()}
            seconds = measure(variants, budget, clock=_clock())
        times = {variant: 1e3 * _typical(values) for variant, values in seconds.items()}
        best = min(VARIANTS, key=lambda variant: times[variant])
        ratio = times["auto"] / times[best]
        cells = [name, PASSES[backward], " x ".join(map(str, shape)), picked, *(f"{ms:.2f}" for ms in times.values())]
        print(f"| {' | '.join(cells)} | {ratio:.2f} |{'' if best == picked else f' {best}'}", flush=True)
        row = {"layout": name, "backward": backward, "shape": shape, "picked": picked, "best": best}
        rows.append({**row, "ms": times, "ratio": ratio})
    worst = max(row["ratio"] for row in rows)
    above = sum(row["ratio"] > TARGET for row in rows)
    print(f"\nauto / best: at worst {worst:.2f}; above {TARGET} in {above} of {len(rows)} cases")
    print("After a row: the fastest variant, where another one was picked.")
    return rows


def _clock() -> Callable[[], float]:
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _typical(seconds: np.ndarray) -> float:
    return float(np.quantile(seconds, 0.25))


def _with_backward(call: Callable[[], Tensor], x: Tensor, grad: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(call(), x, grad)


def time_aspp(budget: float) -> list[dict[str, Any]]:
    warnings.filterwarnings("ignore", message="ASPP: ")  # large rates on small maps are intended
    print("\n### ASPP to 256 channels, forward + backward, seconds\n")
    print("| map | rates | sppnet | torchvision | sppnet / torchvision |\n|---|---|---|---|---|")
    rows = []
    for shape, rates in ATROUS:
        ours, theirs = ASPP(shape[1], 256, rates, norm="batch", dropout=0.5), deeplabv3.ASPP(shape[1], rates, 256)
        with torch.no_grad():
            for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                own.copy_(other)
            x = torch.randn(shape)
            torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-3, atol=1e-4)
        grad = torch.randn(shape[0], 256, *shape[2:])
        x.requires_grad_()
        calls = {name: _train(module.train(), x, grad) for name, module in (("ours", ours), ("theirs", theirs))}
        seconds = measure(calls, budget, rounds=3, clock=_clock())
        own, other = map(_typical, seconds.values())
        ratio = own / other
        print(f"| {' x '.join(map(str, shape))} | {rates} | {own:.3f} | {other:.3f} | {ratio:.2f} |", flush=True)
        rows.append({"shape": shape, "rates": rates, "ours": own, "torchvision": other, "ratio": ratio})
    return rows


def check_sizes() -> None:
    """Check that a segmenter's output has the size of the image, for all sizes up to 130 x 130."""
    model = create_segmenter(SegmenterConfig(("a", "b"), width=32)).eval()
    sizes = list(itertools.product(range(1, 131), repeat=2))
    with torch.inference_mode():
        wrong = [size for size in sizes if model(torch.zeros(1, 3, *size)).shape != (1, 2, *size)]
    print(f"\n{len(sizes)} sizes from 1 x 1 to 130 x 130, {len(wrong)} outputs of another size", flush=True)
    if wrong:
        raise SystemExit(f"the first is {wrong[0]}")


def _train(module: torch.nn.Module, x: Tensor, grad: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(module(x), [x, *module.parameters()], grad)


if __name__ == "__main__":
    main()
