"""Compare DeepLab v3+ with ASPP, with a pyramid pooling module and without a context module on your data.

    python benchmarks/segmentation.py DATA --out DIR [--epochs 5] [--seeds 3]

trains each of the three with several seeds on the training split, scores it on the validation split, and prints one
table. Run the same command again to continue after an interruption; finished trainings are not repeated.
"""

import argparse
import json
import statistics
from pathlib import Path

from rich.table import Table

from sppnet.cli.console import console, results
from sppnet.io.files import write_json
from sppnet.registry import load
from sppnet.segment.evaluate import evaluate_segmenter
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
        raise SystemExit("interrupted; run the same command again to continue")
    model = load(run)
    content = evaluate_segmenter(model, arguments.data, split="val").to_dict()
    parameters = model.head.parameters()
    content["head_parameters"] = sum(parameter.numel() for parameter in parameters)
    content["seconds"] = training.seconds
    write_json(content, file)
    return content


def table(scores: dict[str, list[dict]]) -> Table:
    rows = Table("context", "head parameters", "mIoU %, mean (min to max)", "pixel accuracy %", "seconds", "seeds")
    for context, runs in scores.items():
        if runs:
            miou = [100 * run["miou"] for run in runs]
            rows.add_row(
                context,
                f"{runs[0]['head_parameters']:,}",
                f"{statistics.mean(miou):.1f} ({min(miou):.1f} to {max(miou):.1f})",
                f"{100 * statistics.mean(run['pixel_accuracy'] for run in runs):.1f}",
                f"{statistics.mean(run['seconds'] for run in runs):.0f}",
                str(len(runs)),
            )
    return rows


if __name__ == "__main__":
    main()
