"""Measure the padding of batches of mixed image sizes, and the training throughput at native sizes.

    python benchmarks/mixed.py [--what waste] [--data DIR] [--mix] [--batch 32]
    python benchmarks/mixed.py --what throughput --data DIR [--batch 32] [--rounds 8]

Waste is the share of pixels of a padded batch that belong to no image. Sizes come from a folder of images, from a
synthetic mix of photograph sizes, or from both. Images are used at native size, with at most a million pixels.

Throughput is measured in training of the embedded network, from files to updated weights. Steps at 224 x 224 and at
native sizes alternate in one process. Pixels of images are counted, without padding.
"""

import argparse
import itertools
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric

from sppnet.backbones.backbone import create_backbone
from sppnet.classify.batches import ImageBatches, Padded
from sppnet.classify.model import Classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.classify.options import ClassifyOptions
from sppnet.data.batching import BatchImage, epoch_batches, padding_fraction, share
from sppnet.data.formats.classification import choose_classification_split, read_classification
from sppnet.data.listing import list_images
from sppnet.data.resize import Resize
from sppnet.data.sizes import read_sizes

Size = tuple[int, int]

NATIVE = Resize("native", max_pixels=1_000_000)
BUDGET = 32 * 224 * 224
EPOCHS, SEEDS = 4, 3
CAMERAS = list(itertools.product((4 / 3, 3 / 2, 16 / 9), (0.3, 1, 3, 12)))  # aspect ratio, megapixels
MILLION = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["waste", "throughput"], default="waste")
    parser.add_argument("--data", type=Path, help="folder of images; for throughput, folder of class folders")
    parser.add_argument("--mix", action="store_true", help="use 8,192 synthetic photograph sizes")
    parser.add_argument("--batch", type=int, default=32, help="largest number of images per batch")
    parser.add_argument("--rounds", type=int, default=8, help="throughput: steps per kind of batch")
    arguments = parser.parse_args()
    if arguments.what == "throughput":
        if not arguments.data:
            parser.error("--data: expected a folder of class folders for throughput, got none")
        show_throughput(arguments.data, arguments.batch, arguments.rounds)
        return
    if not (arguments.data or arguments.mix):
        parser.error("--data: expected --data DIR, --mix or both, got none")
    if arguments.data:
        show_waste(arguments.data.name, folder_sizes(arguments.data), arguments.batch)
    if arguments.mix:
        show_waste("mix", mixed_sizes(), arguments.batch)


def folder_sizes(folder: Path) -> list[Size]:
    sizes, failures = read_sizes(list_images(folder))
    for failure in failures:
        print(f"skipped: {failure}")
    return [NATIVE.target_size(*size) for size in sizes.values()]


def mixed_sizes(count: int = 8192, seed: int = 0) -> list[Size]:
    """Draw one third camera formats, one third random sides, and one third areas and aspect ratios up to 1:3."""
    rng = random.Random(seed)
    sizes = []
    for number in range(count):
        if number % 3 == 0:
            aspect, megapixels = rng.choice(CAMERAS)
            height = math.sqrt(megapixels * MILLION / aspect)
            size = rng.choice([(height, height * aspect), (height * aspect, height)])
        elif number % 3 == 1:
            size = math.nan, math.nan
            while not 1 / 13.4 < size[0] / size[1] < 13.4:
                size = log_uniform(rng, 200, 4000), log_uniform(rng, 200, 4000)
        else:
            area, aspect = log_uniform(rng, 0.05 * MILLION, 2 * MILLION), log_uniform(rng, 1 / 3, 3)
            size = math.sqrt(area / aspect), math.sqrt(area * aspect)
        sizes.append(NATIVE.target_size(round(size[0]), round(size[1])))
    return sizes


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def show_waste(name: str, sizes: list[Size], batch: int) -> None:
    print(f"\n### {name}: {len(sizes):,} images, batches of {batch}; waste in %, mean (min to max) of {SEEDS} seeds\n")
    print("| order | waste | batches | repeated pairs, % |")
    print("|---|---|---|---|")
    shuffled = [[chunks(sizes, random_order(len(sizes), seed), batch)] for seed in range(SEEDS)]
    show_row("random", sizes, shuffled)
    show_row(
        "sorted by area", sizes, [[chunks(sizes, sorted(range(len(sizes)), key=lambda i: math.prod(sizes[i])), batch)]]
    )
    show_row(f"planned, {EPOCHS} epochs each", sizes, plans(sizes, batch, None, 1))
    print("\nRepeated pairs shared a batch in the previous epoch, too.")
    print(f"\nEach process pads its own part of a batch. The budget is {BUDGET:,} pixels per part.\n")
    print("| processes | budget | waste | batches | busy, % | of one image | with an idle process | s per plan |")
    print("|---" * 8 + "|")
    for budget, world in itertools.product((None, BUDGET), (1, 2, 4, 8)):
        show_parts(sizes, batch, budget, world)
    alone = sum(2 * math.prod(size) > BUDGET for size in sizes)
    print(f"\n{alone:,} images have more than half the pixels of the budget, so no two of them share a part.")
    print("Busy: pixels of the images relative to the capacity of all processes during the largest part.")


def plans(sizes: list[Size], batch: int, budget: int | None, world: int) -> list[list[list[list[BatchImage]]]]:
    """Plan the batches by seed and epoch."""
    return [
        [epoch_batches(sizes, batch, epoch, seed, None, budget, world) for epoch in range(EPOCHS)]
        for seed in range(SEEDS)
    ]


def random_order(count: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(count), count)


def chunks(sizes: list[Size], order: Sequence[int], batch: int) -> list[list[BatchImage]]:
    return [
        [BatchImage(index, sizes[index], "") for index in order[begin : begin + batch]]
        for begin in range(0, len(order), batch)
    ]


def show_row(name: str, sizes: list[Size], runs: list[list[list[list[BatchImage]]]]) -> None:
    wastes = [padding_fraction(batches, sizes) for epochs in runs for batches in epochs]
    repeated = [repeated_pairs(*pair) for epochs in runs for pair in itertools.pairwise(epochs)]
    cell = f"{100 * sum(repeated) / len(repeated):.0f}" if repeated else ""
    print(f"| {name} | {spread(wastes)} | {len(runs[0][0])} | {cell} |", flush=True)


def show_parts(sizes: list[Size], batch: int, budget: int | None, world: int) -> None:
    begun = time.process_time()
    epochs = [batches for run in plans(sizes, batch, budget, world) for batches in run]
    seconds = (time.process_time() - begun) / len(epochs)
    wastes, capacity = [], 0
    for batches in epochs:
        parts = [[share(group, rank, world) for rank in range(world)] for group in batches]
        wastes.append(padding_fraction(itertools.chain(*parts), sizes))
        capacity += sum(max(padded_pixels(part) for part in group if part) for group in parts) * world
    busy = len(epochs) * sum(map(math.prod, sizes)) / capacity
    single, idle = (
        sum(len(group) < bound for batches in epochs for group in batches) / len(epochs) for bound in (2, world)
    )
    cells = [f"{world}", f"{budget or 'none'}", spread(wastes), f"{len(epochs[0])}", f"{100 * busy:.1f}"]
    print(f"| {' | '.join(cells)} | {single:.0f} | {idle:.0f} | {seconds:.2f} |", flush=True)


def padded_pixels(part: list[BatchImage]) -> int:
    return len(part) * max(draw.size[0] for draw in part) * max(draw.size[1] for draw in part)


def repeated_pairs(before: list[list[BatchImage]], after: list[list[BatchImage]]) -> float:
    """Compute the share of pairs within a batch that also shared a batch in the previous epoch."""
    batch_of = {draw.index: number for number, group in enumerate(before) for draw in group}
    pairs = [pair for group in after for pair in itertools.combinations(group, 2)]
    return sum(batch_of[first.index] == batch_of[second.index] for first, second in pairs) / len(pairs)


def spread(shares: list[float]) -> str:
    mean = 100 * sum(shares) / len(shares)
    return f"{mean:.1f} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def show_throughput(data: Path, batch: int, rounds: int) -> None:
    samples = read_classification(data, choose_classification_split(data, None, "train")).samples
    backbone = create_backbone()
    model = Classifier(ClassifierConfig(tuple(str(sample) for sample in range(1000))), backbone)
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    fabric = Fabric(accelerator="cpu", devices=1)
    fixed, budget = ClassifyOptions(sizes="224", batch=batch), max(batch * 224 * 224, 1_000_000)
    native = replace(fixed, sizes="native")
    kinds = {"224 x 224": fixed, "native": native, "native, equal pixels": replace(native, batch_pixels=budget)}
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        epochs = {
            name: ImageBatches(samples, backbone, options, Path(folder) / "sizes.json", fabric).epoch(1, 0)
            for name, options in kinds.items()
        }
        for _ in range(rounds + 1):
            for name, batches in epochs.items():
                begin = time.perf_counter()
                x, y, _failures = next(batches)
                pixels = sum(h * w for h, w in x.sizes) if isinstance(x, Padded) else len(x) * x.shape[2] * x.shape[3]
                logits = model(*x) if isinstance(x, Padded) else model(x)
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits, y).backward()
                optimizer.step()
                speeds[name].append(pixels / (time.perf_counter() - begin))
    print("| batches | image megapixels per second | relative to 224 x 224, median (min to max) |\n|---|---|---|")
    for name, speed in speeds.items():
        ratios = sorted(n / f for n, f in zip(speed[1:], speeds["224 x 224"][1:], strict=True))
        middle = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {name} | {statistics.median(speed[1:]) / 1e6:.3f} | {middle} |")


if __name__ == "__main__":
    main()
