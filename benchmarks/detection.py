"""Compare the seconds that SPP-net and R-CNN take for one image of 500 x 375 pixels and 2,000 windows.

    python benchmarks/detection.py [--backbones resnet18,tf_efficientnet_lite0] [--rounds 5] [--json FILE]

Both methods use the same network, pyramid and heads, with random weights in the heads. Proposals are excluded, as in
the paper. R-CNN's convolutions run on a sample of the windows, and their time is extrapolated. All parts are
interleaved in one process. Results are the median, minimum and maximum over the rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from sppnet.backbones.backbone import create_backbone
from sppnet.backbones.networks import stage_of_stride
from sppnet.demo.run import sample_photographs
from sppnet.detect.classic.compress import compress
from sppnet.detect.model import Detector, DetectorConfig
from sppnet.detect.proposals import propose
from sppnet.features.encoder import PAPER_SCALES, DistinctVectors

SIZE, WINDOWS, SAMPLE, CLASSES = (500, 375), 2000, 64, 20
RANKS = (1024, 256)  # ranks of fc6 and fc7 in Fast R-CNN
SCALES = {"1 scale": (688,), "5 scales": PAPER_SCALES}
HEADS = ("linear", "fc 4096", "bf16 + SVD")
# Target ratio by scales and timed part.
TARGETS = {
    ("1 scale", "conv + pool"): 150,
    ("5 scales", "conv + pool"): 22,
    ("1 scale", "linear"): 100,
    ("1 scale", "fc 4096"): 25,
    ("1 scale", "bf16 + SVD"): 75,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="resnet18,tf_efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", type=int, default=SAMPLE, help="number of windows that R-CNN's network runs on")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    image = Image.open(sample_photographs()[0]).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
    boxes = propose(image, "selective-search", max_windows=WINDOWS)
    print(f"{len(boxes)} windows, torch {torch.__version__}, {torch.get_num_threads()} threads")
    results = {}
    for name in arguments.backbones.split(","):
        results[name] = compare(name, image, boxes, arguments.rounds, arguments.sample)
        report(name, results[name], arguments.sample)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def compare(name: str, image: Image.Image, boxes: torch.Tensor, rounds: int, sample: int) -> dict[str, list[float]]:
    backbone = create_backbone(name, stage_of_stride(name, 16), "auto" if name.startswith("tf_") else "none").eval()
    classes = tuple(map(str, range(CLASSES)))

    def create(hidden: tuple[int, ...], scales: tuple[int, ...] = (688,), method: str = "spp") -> Detector:
        config = DetectorConfig(classes, method, name, backbone.stage, scales=scales, hidden=hidden)  # type: ignore[arg-type]
        return Detector(config, backbone)

    fc = create((4096, 4096))
    heads = {"linear": create(()), "fc 4096": fc, "bf16 + SVD": compress(fc, RANKS, "bfloat16")}
    rcnn = create((), method="rcnn")
    parts: dict[str, Callable[[], object]] = {}
    crops = boxes[:: len(boxes) // sample][:sample]
    parts["R-CNN conv + pool"] = lambda: rcnn.encoder.distinct(image, crops)  # type: ignore[arg-type]
    full = DistinctVectors(torch.rand(len(boxes), fc.encoder.length), torch.arange(len(boxes)))
    for scales, sides in SCALES.items():
        encoder = create((), sides).encoder
        prepared = encoder.prepare(image)  # type: ignore[arg-type]
        distinct = encoder.distinct(prepared, boxes)  # type: ignore[arg-type]
        print(f"{name}, {scales}: {len(distinct.data)} distinct windows of {len(boxes)}")
        parts[f"{scales} conv"] = lambda encoder=encoder: encoder.prepare(image)
        parts[f"{scales} pool"] = lambda encoder=encoder, prepared=prepared: encoder.distinct(prepared, boxes)
        for head, model in heads.items():
            parts[f"{scales} {head}"] = lambda model=model, distinct=distinct: model(distinct.data)
    for head, model in heads.items():
        parts[f"R-CNN {head}"] = lambda model=model: model(full.data)
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for part, run in parts.items():
                started = time.perf_counter()
                run()
                if turn:
                    seconds[part].append(time.perf_counter() - started)
    factor = len(boxes) / len(crops)
    seconds["R-CNN conv + pool"] = [factor * value for value in seconds["R-CNN conv + pool"]]
    return seconds


def report(name: str, seconds: dict[str, list[float]], sample: int) -> None:
    print(f"\n### {name}\n\n| part | ms, median (min to max) |\n|---|---|")
    for part, times in seconds.items():
        low, middle, high = (1000 * value for value in (min(times), statistics.median(times), max(times)))
        note = f", extrapolated from {sample} windows" if part == "R-CNN conv + pool" else ""
        print(f"| {part}{note} | {middle:,.1f} ({low:,.1f} to {high:,.1f}) |")
    print("\n| | SPP-net, ms | R-CNN, ms | ratio | target |\n|---|---|---|---|---|")
    for scales in SCALES:
        for what in ("conv + pool", *HEADS):
            spp, rcnn = _total(seconds, scales, what)
            ratios = [b / a for a, b in zip(spp, rcnn, strict=True)]
            medians = [1000 * statistics.median(part) for part in (spp, rcnn)]
            target = TARGETS.get((scales, what), "")
            spread = f"{statistics.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f})"
            print(f"| {scales}, {what} | {medians[0]:,.0f} | {medians[1]:,.0f} | {spread} | {target} |")


def _total(seconds: dict[str, list[float]], scales: str, what: str) -> tuple[list[float], list[float]]:
    """Return the seconds per round of SPP-net and R-CNN, for convolutions and pooling or with a head."""
    spp = [sum(parts) for parts in zip(seconds[f"{scales} conv"], seconds[f"{scales} pool"], strict=True)]
    rcnn = seconds["R-CNN conv + pool"]
    if what in HEADS:
        spp = [a + b for a, b in zip(spp, seconds[f"{scales} {what}"], strict=True)]
        rcnn = [a + b for a, b in zip(rcnn, seconds[f"R-CNN {what}"], strict=True)]
    return spp, rcnn


if __name__ == "__main__":
    main()
