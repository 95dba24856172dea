"""Tables of `sppnet compare sizes`."""

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from sppnet.studies.sizes import CROP, FULL, OWN, VARIANTS, VIEWS, error_reduction, format_range

_MEASURES = (("top1", "top-1"), ("top5", "top-5"))


def tables(content: dict[str, Any]) -> list[Table]:
    """Format errors with 10 views, errors of one crop and one full image, and training costs as three tables."""
    return [_views_table(content), _full_table(content), _cost_table(content)]


def paper_table(content: dict[str, Any]) -> Table:
    """Format the errors of the paper's networks on ImageNet as a table."""
    paper = content["paper"]
    table = _table("the paper's errors in % on ImageNet (Tables 2 and 3)", content["variants"])
    for measure, head in _MEASURES:
        _add_row(table, f"{head}, {VIEWS}", {})
        for number, network in enumerate(paper["networks"]):
            errors = {name: values[number] for name, values in paper[VIEWS][measure].items()}
            _add_row(table, network, {name: f"{error:.2f}" for name, error in errors.items() if error is not None})
        table.add_section()
    full = paper["1 crop and 1 full"]
    for number, test in enumerate((CROP, FULL)):
        _add_row(table, f"top-1, {test}", {})
        for network in full["single"]:
            _add_row(table, network, {name: f"{values[network][number]:.2f}" for name, values in full.items()})
    return table


def _views_table(content: dict[str, Any]) -> Table:
    variants = content["variants"]
    table = _table(f"errors in % with 10 views, and gains in points; {_counts(content)}", variants)
    for measure, head in _MEASURES:
        errors = {name: variant[f"{measure}_error"][VIEWS] for name, variant in variants.items()}
        # Paired by seed: equal seeds give the same order and augmentation of the images.
        gains = {name: error_reduction(errors["no-spp"], values) for name, values in errors.items() if name != "no-spp"}
        _add_row(table, head, {name: format_range(values) for name, values in errors.items()})
        _add_row(table, "gain", {name: format_range(values, "+") for name, values in gains.items()})
        table.add_section()
    return table


def _full_table(content: dict[str, Any]) -> Table:
    variants = content["variants"]
    title = (
        "top-1 errors in %: 1 crop of 224 pixels and 1 full image, both at a shorter side of 256, and the full image at"
        f" its own size; {_counts(content)}"
    )
    table = _table(title, variants)
    for test in (CROP, FULL, OWN):
        _add_row(table, test, {name: format_range(variant["top1_error"][test]) for name, variant in variants.items()})
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
