"""The command line: what is asked for on it is done by the other rooms."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError

from sppnet import __version__
from sppnet.cli import classify, detect, inference, segment
from sppnet.cli.bench import bench, bench_parser
from sppnet.cli.check import check_dataset, check_parser
from sppnet.cli.common import complain, parse_level_text
from sppnet.cli.compare_detectors import compare, compare_parser
from sppnet.cli.compare_sizes import sizes, sizes_parser
from sppnet.cli.doctor import doctor, doctor_parser
from sppnet.cli.export import check, export, export_parser, verify_parser
from sppnet.cli.features import features, features_parser
from sppnet.cli.serve import serve, serve_parser
from sppnet.console import results
from sppnet.errors import ImageError


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 2 wrong arguments, 1 anything else that failed.

    Images that cannot be read count as failed where an answer was asked for each (evaluate, predict); a training
    that could do without them is done.
    """
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a file is told in our own words, by its name
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # an answer is out once it is known, whoever kills us then
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run a command; the exit code. argparse itself exits for --help and for words that it does not know."""
    parser, commands = _parsers()
    arguments = parser.parse_args(list(argv))
    name, chosen = arguments.command, arguments[arguments.command]
    if name == "train":
        name, chosen = f"train {chosen.task}", chosen[chosen.task]
    try:
        return commands[name](chosen)
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on where it can (train: with --resume)")
    except (ValueError, TypeError) as error:
        complain(str(error))
        return 1 if isinstance(error, ImageError) else 2
    except BrokenPipeError:
        # The reader of standard output has gone, as head does; Python's own last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, MemoryError, ModuleNotFoundError, RuntimeError, SafetensorError) as error:
        complain(f"{type(error).__name__}: {error}" if not isinstance(error, ModuleNotFoundError) else str(error))
    return 1


def _parsers() -> tuple[ArgumentParser, dict[str, Callable[[Namespace], int]]]:
    parser = ArgumentParser(
        prog="sppnet", description="Spatial pyramid pooling: networks that take every image at its own size."
    )
    parser.add_argument("--version", action="version", version=f"sppnet {__version__}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    train = ArgumentParser(description="Train a model.")
    commands.add_subcommand("train", train, help="train a model")
    tasks = train.add_subcommands(dest="task", metavar="TASK")
    tasks.add_subcommand("classify", classify.train_parser(), help="a classifier, from a folder of class folders")
    tasks.add_subcommand("detect", detect.train_parser(), help="a detector, from images with boxes")
    tasks.add_subcommand("segment", segment.train_parser(), help="classes of pixels, from images with masks")
    commands.add_subcommand("check", check_parser(), help="name what is wrong in a data set, file by file")
    commands.add_subcommand("evaluate", inference.evaluate_parser(), help="measure a model on data with known answers")
    commands.add_subcommand("predict", inference.predict_parser(), help="classify images, find objects or label pixels")
    commands.add_subcommand("compare-detectors", compare_parser(), help="SPP-net beside R-CNN on your own data")
    commands.add_subcommand("compare-sizes", sizes_parser(), help="training sizes beside each other on your images")
    commands.add_subcommand("export", export_parser(), help="write an ONNX file that takes every image size")
    commands.add_subcommand("verify", verify_parser(), help="compare an ONNX file with its run")
    commands.add_subcommand(
        "doctor", doctor_parser(), help="test the installation, or a network for images of mixed sizes"
    )
    commands.add_subcommand("features", features_parser(), help="write vectors of boxes of many images")
    commands.add_subcommand("serve", serve_parser(), help="answer for photographs over HTTP, and on a page")
    commands.add_subcommand("demo", _demo_parser(), help="classify photographs and write a report with pictures")
    commands.add_subcommand("bench", bench_parser(), help="time the operators on maps of your own shape")
    return parser, {
        "train classify": classify.train,
        "train detect": detect.train,
        "train segment": segment.train,
        "check": check_dataset,
        "evaluate": inference.evaluate,
        "predict": inference.predict,
        "compare-detectors": compare,
        "compare-sizes": sizes,
        "export": export,
        "verify": check,
        "doctor": doctor,
        "features": features,
        "serve": serve,
        "demo": _demo,
        "bench": bench,
    }


def _demo_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Classify real photographs with the embedded ImageNet network, at their own and at odd sizes, and"
        " write a report with each pyramid level drawn over them and the objects that one pass finds among windows."
    )
    parser.add_argument("images", nargs="*", help="your own photographs; left out: those of installed packages")
    parser.add_argument("--out", default="sppnet-demo", help="folder for the report")
    parser.add_argument("--levels", type=str, default="6,3,2,1", help="levels that are drawn")
    return parser


def _demo(arguments: Namespace) -> int:
    from sppnet.demo.run import run_demo

    levels = parse_level_text(arguments.levels)
    square = [level for level in levels if isinstance(level, int)]
    if len(square) < len(levels):
        raise ValueError(f"levels: the demonstration draws n x n levels, such as 6,3,2,1; got {arguments.levels}")
    result = run_demo(Path(arguments.out), arguments.images, square)
    table = Table("photograph", "size", "answer", "probability")
    for one in result.answers:
        size = f"{one.size[0]} x {one.size[1]}"
        table.add_row(escape(Path(one.source).name), size, escape(one.label), f"{one.score:.2f}")
    results.print(table)
    regions = result.regions
    results.print(
        f"{regions.windows} windows of {escape(Path(result.answers[-1].source).name)} in one pass:"
        f" {1000 * regions.once.seconds:.0f} ms; a pass for each window would take {regions.ratio(regions.once):.0f}"
        f" times as long, {regions.ratio(regions.paper):.0f} times at the paper's {regions.paper.scale} pixels"
        f" (measured on a sample of {regions.sample} windows)",
        highlight=False,
    )
    results.print(f"open {result.report.resolve()}", highlight=False, soft_wrap=True, markup=False)
    return 0
