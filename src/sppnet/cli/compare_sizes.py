"""`sppnet compare-sizes`: the paper's Tables 2 and 3 for one's own images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich import box
from rich.markup import escape
from rich.table import Table

from sppnet.cli.common import list_failures, parse_level_text, tell_comparison
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
    first_images,
    gain,
    spread,
)
from sppnet.training.options import TrainOptions


def sizes_parser() -> ArgumentParser:
    """Options of `sppnet compare-sizes`."""
    parser = ArgumentParser(
        description="Train one network without SPP, and with SPP at one size, at two in turn, at sizes drawn between"
        " them and at native sizes, with equal epochs and seeds, and print the paper's Tables 2 and 3 for your own"
        " images. Each training is a run folder in DIR; a killed comparison goes on where it stopped with the same"
        " command, and a finished one is printed at once."
    )
    add, default = parser.add_argument, TrainOptions()
    add("data", help="folder of splits (train, and val or test); or, with --val, class folders or a CSV file")
    add("--out", required=True, metavar="DIR", help="folder for the runs and the figures")
    add("--val", type=str | None, metavar="DATA", help="images to test on; left out: the split val or test")
    add("--seeds", type=int, default=3, help="how often each variant is trained")
    add("--seed", type=int, default=default.seed, help="the first seed")
    add("--images-per-class", type=int | None, metavar="K", help="training images of each class; left out: all")
    add("--val-images-per-class", type=int | None, metavar="K", help="images of each class to test on; left out: all")
    add("--backbone", default=default.backbone, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add("--stage", type=int | None, help="feature map of the backbone: 0 the finest, -1 the coarsest; left out: last")
    add("--weights", default=default.weights, help="auto, hub (downloads timm's), none, or a safetensors file")
    add("--levels", type=list[int] | str, default="3,2,1", help="levels of the pyramid, such as 6,3,2,1 or 2x3,1")
    add("--reduce", type=Reduce, default=default.reduce, help="what a bin keeps of its cells")
    add("--rule", type=Rule, default=default.rule, help="how maps are cut into bins")
    add("--head", type=str | None, help="linear or fc (the paper's three layers)")
    add("--max-pixels", type=int, default=default.max_pixels, help="bound of native sizes, height times width")
    add("--epochs", type=int, default=default.epochs, help="passes over the images, the same for all")
    add("--batch", type=int, default=default.batch, help="images a batch")
    add("--optimizer", default=default.optimizer, help="adamw or sgd")
    add("--lr", type=float | None, help="highest learning rate; left out: 3e-4 for adamw, 1e-2 for sgd")
    add("--weight-decay", type=float | None, help="left out: 5e-2 for adamw, 5e-4 for sgd")
    add("--schedule", default=default.schedule, help="cosine or step")
    add("--precision", default=default.precision, help="32-true or bf16-mixed")
    add("--workers", type=int, default=default.workers, help="processes that decode images")
    add("--device", default=default.device, help="auto, cpu, cuda or mps")
    add("--json", action="store_true", help="print one JSON object and nothing else on standard output")
    return parser


def sizes(arguments: Namespace) -> int:
    """Compare, print, and write the figures; 1 if an image could not be read."""
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    values = {name: value for name, value in vars(arguments).items() if name in names}
    options = TrainOptions(**{**values, "levels": parse_level_text(arguments.levels)})
    for name in ("images_per_class", "val_images_per_class"):
        if arguments[name] is not None and arguments[name] < 1:
            raise ValueError(f"{name.replace('_', '-')}: expected at least 1; got {arguments[name]}")
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
    tell_comparison(content, tables, out, arguments.json)
    return 1 if comparison.failures else 0


def tables(content: dict[str, Any]) -> list[Table]:
    """Errors with 10 views, of one crop and one full image, and what training took; [ ] the paper's figures."""
    return [_views_table(content), _full_table(content), _cost_table(content)]


def _read_val(arguments: Namespace, classes: Sequence[str]) -> ClassificationData:
    where = arguments.val or arguments.data
    split = find_split(where, "val", "valid", "validation", "test")
    if arguments.val is None and split is None:
        raise ValueError(
            f"val: {where} has no split val or test to measure on; give --val with labelled images, or make a folder"
            " of splits"
        )
    return read_classification(where, split, classes)


def _views_table(content: dict[str, Any]) -> Table:
    paper, variants = content["paper"], content["variants"]
    title = f"10 views: errors in %, and the gain over no SPP in points; {_counts(content)}; [ ] Table 2 of the paper"
    table = _table(title, variants)
    for measure, head in (("top1", "top-1"), ("top5", "top-5")):
        errors = {name: variant[f"{measure}_error"][VIEWS] for name, variant in variants.items()}
        # The same seed, so the same order and augmentation of the images.
        gains = {name: gain(errors["no-spp"], values) for name, values in errors.items() if name != "no-spp"}
        _add_row(table, head, {name: spread(values) for name, values in errors.items()})
        _add_row(table, "gain", {name: spread(values, "+") for name, values in gains.items()})
        for number, network in enumerate(paper["networks"]):
            told = {name: figures[number] for name, figures in paper[VIEWS][measure].items()}
            _add_row(table, network, {name: f"[{told[name]:.2f}]" for name in told if told[name] is not None})
        table.add_section()
    return table


def _full_table(content: dict[str, Any]) -> Table:
    variants, told = content["variants"], content["paper"]["1 crop and 1 full"]
    title = (
        "1 crop of 224 pixels against 1 full image, both at the shorter side 256, and the full image at its own size:"
        f" top-1 errors in %; {_counts(content)}; [ ] Table 3 of the paper"
    )
    table = _table(title, variants)
    for test in (CROP, FULL, OWN):
        _add_row(table, test, {name: spread(variant["top1_error"][test]) for name, variant in variants.items()})
    table.add_section()
    for network in told["single"]:
        for number, test in enumerate((CROP, FULL)):
            cells = {name: f"[{figures[network][number]:.2f}]" for name, figures in told.items()}
            _add_row(table, f"{network},\n{test}", cells)
    return table


def _cost_table(content: dict[str, Any]) -> Table:
    variants = content["variants"]
    passes = content["epochs"] * content["images"]["train"]
    table = _table(f"a training: {content['epochs']} epochs, {passes} images in all", variants)
    megapixels = {name: [pixels / 1e6 for pixels in variant["pixels"]] for name, variant in variants.items()}
    _add_row(table, "megapixels seen", {name: spread(values) for name, values in megapixels.items()})
    _add_row(table, "seconds", {name: spread(variant["seconds"]) for name, variant in variants.items()})
    return table


def _counts(content: dict[str, Any]) -> str:
    images, seeds = content["images"], content["seeds"]
    ranges = f"mean, lowest to highest of {seeds} seeds" if seeds > 1 else "one seed"
    return f"{ranges}, {images['train']} training and {images['val']} validation images"


def _table(title: str, variants: dict[str, Any]) -> Table:
    heads = (f"{'SPP' if variant['spp'] else 'no SPP'}\n{variant['sizes']}" for variant in variants.values())
    # Without lines between the columns the table fits into 80 characters.
    return Table("", *heads, title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _add_row(table: Table, head: str, cells: dict[str, str]) -> None:
    """A row with the cells of the variants that have one."""
    table.add_row(escape(head), *(escape(cells.get(name, "")) for name in VARIANTS))
