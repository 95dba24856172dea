"""`sppnet demo`: classify photographs and write an illustrated report."""

from pathlib import Path

from jsonargparse import Namespace
from rich.markup import escape
from rich.table import Table

from sppnet.cli.console import line, results
from sppnet.cli.parser import CommandParser, levels


def demo_parser() -> CommandParser:
    """Build the argument parser of `sppnet demo`."""
    parser = CommandParser(
        "demo",
        "Classify photographs with the embedded ImageNet network, at their own size and at unusual sizes. The HTML"
        " report shows the bins of each pyramid level and the objects found among windows in one pass.",
    )
    text = "image files; default: photographs of scikit-learn and scikit-image"
    parser.option("data", "images", text, [], nargs="*")
    parser.option("model", "--levels", "pyramid levels to draw", (6, 3, 2, 1), type=levels)
    parser.option("output", "--out", "output folder of the report", "sppnet-demo", metavar="DIR")
    return parser


def demo(arguments: Namespace) -> int:
    """Write the report, print a summary and return 0."""
    from sppnet.demo.run import run_demo

    square = [level for level in arguments.levels if isinstance(level, int)]
    if len(square) < len(arguments.levels):
        raise ValueError(f"levels: expected n x n levels such as 6,3,2,1, got {arguments.levels}")
    result = run_demo(Path(arguments.out), arguments.images, square)
    table = Table("image", "height x width", "class", "probability")
    for answer in result.answers:
        size = f"{answer.size[0]} x {answer.size[1]}"
        table.add_row(escape(Path(answer.source).name), size, escape(answer.label), f"{answer.score:.2f}")
    results.print(table)
    regions = result.regions
    line(
        f"{regions.windows} windows of {Path(result.answers[-1].source).name} in one pass:"
        f" {1000 * regions.once.seconds:.0f} ms; one pass per window would take {regions.ratio(regions.once):.0f} times"
        f" as long, or {regions.ratio(regions.paper):.0f} times at the paper's scale of {regions.paper.scale} pixels"
        f" (measured on a sample of {regions.sample} windows)"
    )
    line(f"open {result.report.resolve()}")
    return 0
