"""`sppnet compare-sizes`: reproduce Tables 2 and 3 of the SPP-net paper on other images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich import box
from rich.markup import escape
from rich.table import Table

from sppnet.classify.options import TrainOptions
from sppnet.cli.common import list_failures, parse_level_text, print_comparison
from sppnet.data.formats.class_folders import ClassificationData, read_classification
from sppnet.data.splits import find_split
from sppnet.io.files import write_json
from sppnet.ops.bins import Rule
from sppnet.ops.reference import Reduce
from sppnet.studies.sizes import (
    CROP,
    FULL,
    OWN,
    VARIANTS,
    VIEWS,
    compare_sizes,
    comparison_content,
    error_reduction,
    first_images,
    format_range,
)


def sizes_parser() -> ArgumentParser:
    """Build the argument parser of `sppnet compare-sizes`."""
    parser = ArgumentParser(
        description="Train a network without SPP, and with SPP at one size, two alternating sizes, random sizes and"
        " native sizes, with equal epochs and seeds, and print Tables 2 and 3 of the SPP-net paper for your images."
        " Each training is a run folder in DIR. Run the same command again to continue after an interruption, or to"
        " print a finished comparison."
    )
    add, default = parser.add_argument, TrainOptions()
    add("data", help="folder of splits (train, val or test); with --val, class folders or a CSV file")
    add("--out", required=True, metavar="DIR", help="output folder for the runs and the results")
    add("--val", type=str | None, metavar="DATA", help="test images; default: the split val or test")
    add("--seeds", type=int, default=3, help="number of trainings per variant")
    add("--seed", type=int, default=default.seed, help="first random seed")
    add("--images-per-class", type=int | None, metavar="K", help="training images per class; default: all")
    add("--val-images-per-class", type=int | None, metavar="K", help="test images per class; default: all")
    add("--backbone", default=default.backbone, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add("--stage", type=int | None, help="feature map: 0 (finest) to -1 (coarsest); default: the classifier's input")
    add("--weights", default=default.weights, help="weights: auto, hub (timm download), none, or a safetensors file")
    add("--levels", type=list[int] | str, default="3,2,1", help="pyramid levels, such as 6,3,2,1 or 2x3,1")
    add("--reduce", type=Reduce, default=default.reduce, help="pooling within a bin: max or avg")
    add("--rule", type=Rule, default=default.rule, help="division of maps into bins: adaptive, sliding or caffe")
    add("--head", type=str | None, help="linear or fc (the paper's three layers); default: linear")
    add("--max-pixels", type=int, default=default.max_pixels, help="largest image area at native sizes, in pixels")
    add("--epochs", type=int, default=default.epochs, help="number of epochs of each training")
    add("--batch", type=int, default=default.batch, help="images per batch")
    add("--optimizer", default=default.optimizer, help="optimizer: adamw or sgd")
    add("--lr", type=float | None, help="peak learning rate; default: 3e-4 for adamw, 1e-2 for sgd")
    add("--weight-decay", type=float | None, help="weight decay; default: 5e-2 for adamw, 5e-4 for sgd")
    add("--schedule", default=default.schedule, help="learning rate schedule: cosine or step")
    add("--precision", default=default.precision, help="precision: 32-true or bf16-mixed")
    add("--workers", type=int, default=default.workers, help="number of processes that decode images")
    add("--device", default=default.device, help="device: auto, cpu, cuda or mps")
    add("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def sizes(arguments: Namespace) -> int:
    """Compare the sizes, write and print the results, and return 0, or 1 if an image could not be read."""
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    values = {name: value for name, value in vars(arguments).items() if name in names}
    options = TrainOptions(**{**values, "levels": parse_level_text(arguments.levels)})
    for name in ("images_per_class", "val_images_per_class"):
        if arguments[name] is not None and arguments[name] < 1:
            raise ValueError(f"{name.replace('_', '-')}: expected at least 1, got {arguments[name]}")
    train = read_classification(arguments.data, find_split(arguments.data, "train"))
    val = _read_val(arguments, train.classes)
    skipped = train.skipped + val.skipped
    train = first_images(train, arguments.images_per_class, options.seed)
    val = first_images(val, arguments.val_images_per_class, options.seed)
    out = Path(arguments.out)
    comparison = compare_sizes(train, val, options, out, arguments.seeds)
    content = comparison_content(comparison)
    write_json(content, out / "comparison.json")
    list_failures(comparison.failures, skipped)
    print_comparison(content, tables, out, arguments.json)
    return 1 if comparison.failures else 0


def tables(content: dict[str, Any]) -> list[Table]:
    """Format errors with 10 views, errors of one crop and one full image, and training costs as three tables."""
    return [_views_table(content), _full_table(content), _cost_table(content)]


def _read_val(arguments: Namespace, classes: Sequence[str]) -> ClassificationData:
    root = arguments.val or arguments.data
    split = find_split(root, "val", "valid", "validation", "test")
    if arguments.val is None and split is None:
        raise ValueError(f"val: expected a split val or test in {root}, got none; set --val to labeled images")
    return read_classification(root, split, classes)


def _views_table(content: dict[str, Any]) -> Table:
    paper, variants = content["paper"], content["variants"]
    title = f"errors in % with 10 views, and gains in points; {_counts(content)}; in brackets: Table 2 of the paper"
    table = _table(title, variants)
    for measure, head in (("top1", "top-1"), ("top5", "top-5")):
        errors = {name: variant[f"{measure}_error"][VIEWS] for name, variant in variants.items()}
        # Paired by seed: equal seeds give the same order and augmentation of the images.
        gains = {name: error_reduction(errors["no-spp"], values) for name, values in errors.items() if name != "no-spp"}
        _add_row(table, head, {name: format_range(values) for name, values in errors.items()})
        _add_row(table, "gain", {name: format_range(values, "+") for name, values in gains.items()})
        for number, network in enumerate(paper["networks"]):
            published = {name: values[number] for name, values in paper[VIEWS][measure].items()}
            _add_row(table, network, {name: f"[{value:.2f}]" for name, value in published.items() if value is not None})
        table.add_section()
    return table


def _full_table(content: dict[str, Any]) -> Table:
    variants, paper = content["variants"], content["paper"]["1 crop and 1 full"]
    title = (
        "top-1 errors in %: 1 crop of 224 pixels and 1 full image, both at a shorter side of 256, and the full image at"
        f" its own size; {_counts(content)}; in brackets: Table 3 of the paper"
    )
    table = _table(title, variants)
    for test in (CROP, FULL, OWN):
        _add_row(table, test, {name: format_range(variant["top1_error"][test]) for name, variant in variants.items()})
    table.add_section()
    for network in paper["single"]:
        for number, test in enumerate((CROP, FULL)):
            cells = {name: f"[{values[network][number]:.2f}]" for name, values in paper.items()}
            _add_row(table, f"{network},\n{test}", cells)
    return table


def _cost_table(content: dict[str, Any]) -> Table:
    variants = content["variants"]
    passes = content["epochs"] * content["images"]["train"]
    table = _table(f"cost of a training: {content['epochs']} epochs, {passes} images in total", variants)
    megapixels = {name: [pixels / 1e6 for pixels in variant["pixels"]] for name, variant in variants.items()}
    _add_row(table, "megapixels", {name: format_range(values) for name, values in megapixels.items()})
    _add_row(table, "seconds", {name: format_range(variant["seconds"]) for name, variant in variants.items()})
    return table


def _counts(content: dict[str, Any]) -> str:
    images, seeds = content["images"], content["seeds"]
    ranges = f"mean, min to max of {seeds} seeds" if seeds > 1 else "one seed"
    return f"{ranges}, {images['train']} training and {images['val']} validation images"


def _table(title: str, variants: dict[str, Any]) -> Table:
    heads = (f"{'SPP' if variant['spp'] else 'no SPP'}\n{variant['sizes']}" for variant in variants.values())
    # A box without column lines makes the table fit into 80 characters.
    return Table("", *heads, title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _add_row(table: Table, head: str, cells: dict[str, str]) -> None:
    """Add a row with an empty cell for each variant without a value."""
    table.add_row(escape(head), *(escape(cells.get(name, "")) for name in VARIANTS))
