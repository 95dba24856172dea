"""ASPP beside the same network without it and with a pyramid pooling module in its place, on your own data.

    python benchmarks/segmentation.py DATA --out DIR [--epochs 5] [--seeds 3]

trains DeepLab v3+ with each of the three and with several seeds on the training split, scores it on the validation
split, and prints one table. A training that was killed goes on; one that is done is not done again.
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

from rich.table import Table

from sppnet.console import console, results
from sppnet.io.files import write_json
from sppnet.segment.model import create_segmenter
from sppnet.segment.options import SegmentOptions
from sppnet.segment.train import train_segmenter

CONTEXTS = ("none", "ppm", "aspp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    scores: dict[str, list[dict]] = {context: [] for context in CONTEXTS}
    for seed in range(arguments.seeds):
        for context in CONTEXTS:
            options = SegmentOptions(context=context, epochs=arguments.epochs, seed=seed)
            scores[context].append(score(arguments, options))
            results.print(table(scores))


def score(arguments: argparse.Namespace, options: SegmentOptions) -> dict:
    run = arguments.out / f"{options.context}-{options.seed}"
    file = run / "scores.json"
    if file.exists():
        return json.loads(file.read_text())
    console.print(f"{options.context}, seed {options.seed}")
    training = train_segmenter(arguments.data, run, options, resume=True)
    if not training.finished:
        raise SystemExit("interrupted; the same command goes on")
    if training.scores is None:
        raise SystemExit(f"{arguments.data} has no split for validation")
    content = dataclasses.asdict(training.scores)
    parameters = create_segmenter(options.config(tuple(content["per_class"])), None).head.parameters()
    content["head_parameters"] = sum(parameter.numel() for parameter in parameters)
    content["seconds"] = training.seconds
    write_json(content, file)
    return content


def table(scores: dict[str, list[dict]]) -> Table:
    shown = Table("context", "parameters of the head", "mIoU: mean (least to greatest)", "pixels", "seconds", "seeds")
    for context, found in scores.items():
        if found:
            miou = [100 * one["miou"] for one in found]
            shown.add_row(
                context,
                f"{found[0]['head_parameters']:,}",
                f"{statistics.mean(miou):.1f} ({min(miou):.1f} to {max(miou):.1f})",
                f"{100 * statistics.mean(one['pixel_accuracy'] for one in found):.1f}",
                f"{statistics.mean(one['seconds'] for one in found):.0f}",
                str(len(found)),
            )
    return shown


if __name__ == "__main__":
    main()
