"""Entry point of the `sppnet` command: parse arguments, run the command, return the exit code."""

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
from sppnet.cli.common import parse_level_text, print_error
from sppnet.cli.compare_detectors import compare, compare_parser
from sppnet.cli.compare_sizes import sizes, sizes_parser
from sppnet.cli.doctor import doctor, doctor_parser
from sppnet.cli.export import check, export, export_parser, verify_parser
from sppnet.cli.features import features, features_parser
from sppnet.cli.serve import serve, serve_parser
from sppnet.console import results
from sppnet.errors import ImageError


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit with 0 on success, 2 for invalid arguments and 1 for any other failure.

    Unreadable images are failures of commands that report on each image (evaluate, predict). Training skips them.
    """
    warnings.filterwarnings("ignore", module="PIL")  # our own messages name the file
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # results survive a later kill
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run a command and return its exit code.

    Raises:
        SystemExit: --help, --version, or arguments that argparse rejects.
    """
    parser, commands = _parsers()
    arguments = parser.parse_args(list(argv))
    name, options = arguments.command, arguments[arguments.command]
    if name == "train":
        name, options = f"train {options.task}", options[options.task]
    try:
        return commands[name](options)
    except KeyboardInterrupt:
        print_error("interrupted; run the same command again to continue (train: with --resume)")
    except (ValueError, TypeError) as error:
        print_error(str(error))
        return 1 if isinstance(error, ImageError) else 2
    except BrokenPipeError:
        # The reader of standard output closed it, as `head` does. Python's final flush must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, MemoryError, ModuleNotFoundError, RuntimeError, SafetensorError) as error:
        print_error(f"{type(error).__name__}: {error}" if not isinstance(error, ModuleNotFoundError) else str(error))
    return 1


def _parsers() -> tuple[ArgumentParser, dict[str, Callable[[Namespace], int]]]:
    parser = ArgumentParser(
        prog="sppnet", description="Spatial pyramid pooling: networks that process each image at its own size."
    )
    parser.add_argument("--version", action="version", version=f"sppnet {__version__}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    train = ArgumentParser(description="Train a model.")
    commands.add_subcommand("train", train, help="train a model")
    tasks = train.add_subcommands(dest="task", metavar="TASK")
    tasks.add_subcommand("classify", classify.train_parser(), help="train a classifier on images in class folders")
    tasks.add_subcommand("detect", detect.train_parser(), help="train a detector on images with boxes")
    tasks.add_subcommand("segment", segment.train_parser(), help="train a segmenter on images with masks")
    commands.add_subcommand("check", check_parser(), help="list the problems of a data set file by file")
    commands.add_subcommand("evaluate", inference.evaluate_parser(), help="score a model on annotated images")
    commands.add_subcommand("predict", inference.predict_parser(), help="apply a model to images")
    commands.add_subcommand("compare-detectors", compare_parser(), help="compare SPP-net with R-CNN on your data")
    commands.add_subcommand("compare-sizes", sizes_parser(), help="compare training image sizes on your images")
    commands.add_subcommand("export", export_parser(), help="write an ONNX file that accepts any image size")
    commands.add_subcommand("verify", verify_parser(), help="compare an ONNX file with the run it was exported from")
    commands.add_subcommand("doctor", doctor_parser(), help="test the installation, or a network with padded batches")
    commands.add_subcommand("features", features_parser(), help="write the feature vectors of boxes in images")
    commands.add_subcommand("serve", serve_parser(), help="serve a model over HTTP, with a web page")
    commands.add_subcommand("demo", _demo_parser(), help="classify photographs and write an illustrated report")
    commands.add_subcommand("bench", bench_parser(), help="time the pooling operators on a given shape")
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
        description="Classify photographs with the embedded ImageNet network, at their own size and at unusual sizes."
        " The HTML report shows the bins of each pyramid level and the objects found among windows in one pass."
    )
    parser.add_argument("images", nargs="*", help="image files; default: samples from scikit-learn and scikit-image")
    parser.add_argument("--out", default="sppnet-demo", help="output folder for the report")
    parser.add_argument("--levels", type=str, default="6,3,2,1", help="pyramid levels to draw")
    return parser


def _demo(arguments: Namespace) -> int:
    from sppnet.demo.run import run_demo

    levels = parse_level_text(arguments.levels)
    square = [level for level in levels if isinstance(level, int)]
    if len(square) < len(levels):
        raise ValueError(f"levels: expected n x n levels such as 6,3,2,1, got {arguments.levels}")
    result = run_demo(Path(arguments.out), arguments.images, square)
    table = Table("image", "height x width", "class", "probability")
    for answer in result.answers:
        size = f"{answer.size[0]} x {answer.size[1]}"
        table.add_row(escape(Path(answer.source).name), size, escape(answer.label), f"{answer.score:.2f}")
    results.print(table)
    regions = result.regions
    results.print(
        f"{regions.windows} windows of {escape(Path(result.answers[-1].source).name)} in one pass:"
        f" {1000 * regions.once.seconds:.0f} ms; one pass per window would take {regions.ratio(regions.once):.0f} times"
        f" as long, or {regions.ratio(regions.paper):.0f} times at the paper's scale of {regions.paper.scale} pixels"
        f" (measured on a sample of {regions.sample} windows)",
        highlight=False,
    )
    results.print(f"open {result.report.resolve()}", highlight=False, soft_wrap=True, markup=False)
    return 0
