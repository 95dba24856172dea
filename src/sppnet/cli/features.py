"""`sppnet features`: compute feature vectors of images or boxes and write them to files."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from sppnet.backbones.names import PAPER_BACKBONES
from sppnet.cli import engine
from sppnet.cli.common import add_images, collect_images, list_failures, read_names
from sppnet.cli.console import line, message
from sppnet.cli.parser import CommandParser, levels, numbers, options_of
from sppnet.data.formats.box_formats import BoxFormat, OnBad
from sppnet.errors import ImageError
from sppnet.features.options import Dtype, RegionEncoderConfig, Storage
from sppnet.io import remote
from sppnet.ops.levels import CellRule

_PROBLEMS = "problems.txt"


def features_parser() -> CommandParser:
    """Build the argument parser of `sppnet features`."""
    parser = CommandParser(
        "features",
        "Write one feature vector per image, or one per box with --boxes. The network runs once per image, and a"
        " pyramid is pooled over its whole map, or over the cells of each box. DIR receives files of at most 250 MB and"
        " index.json. Run the same command again to continue after an interruption."
        " sppnet.features.vectors.read_features(DIR) reads the vectors image by image.",
    )
    option, config = parser.option, RegionEncoderConfig()
    add_images(parser, "images and folders of images, as paths or URLs such as s3://bucket/photos")
    text = "box file: .csv, .jsonl, or COCO .json; default: one vector for each image"
    option("data", "--boxes", text, type=str | None, metavar="FILE")
    text = "xyxy or xywh, optionally with -normalised; default: as in the file"
    option("data", "--box-format", text, type=BoxFormat | None)
    option("data", "--on-bad", "invalid boxes: raise an error, clip to the image, or drop", "raise", type=OnBad)
    parser.fields(
        "model",
        config,
        backbone=f"timm network, or one of {', '.join(PAPER_BACKBONES)}",
        stage="feature map: 0 (finest) to -1 (coarsest); default: the classifier's input",
    )
    option("model", "--weights", "auto, hub (timm download), none (random with a fixed seed), or a file", "auto")
    parser.fields(
        "model",
        config,
        levels=("pyramid levels, such as 6,3,2,1 or 2x3,1", levels),
        scales=("shorter sides in pixels, such as 480,576,688; one is chosen for each box", numbers()),
        max_side="largest longer side in pixels",
        reduce="pooling within a bin",
    )
    option("model", "--cell-rule", "conversion of boxes into cells", config.rule, type=CellRule)
    option("output", "--out", "output folder, as a path or a URL", required=True, metavar="DIR")
    option("output", "--storage", "file format", "safetensors", type=Storage)
    option("output", "--dtype", "dtype of the vectors", "float16", type=Dtype)
    text = "number of leading images to draw, with their boxes and cells, before the computation"
    option("output", "--draw", text, 0, type=int, metavar="IMAGES")
    option("hardware", "--device", "auto, cpu, cuda or mps", "auto")
    engine.add_engine_options(parser)
    return parser


def features(arguments: Namespace) -> int:
    """Write the vectors and return 0, or 1 if an image could not be used."""
    import torch

    from sppnet.data.formats.boxes import BoxFile, read_boxes
    from sppnet.devices import pick_device
    from sppnet.features.boxes import whole_images
    from sppnet.features.encoder import create_region_encoder
    from sppnet.features.vectors import compute_features

    names, out = read_names(arguments), remote.resolve(arguments.out, Path())
    compute = engine.features_engine(arguments)
    _check_options(arguments, names)
    if arguments.draw < 0:
        raise ValueError(f"draw: expected 0 or more images, got {arguments.draw}")
    device = pick_device("cpu" if compute else arguments.device)
    config = replace(options_of(RegionEncoderConfig, arguments), rule=arguments.cell_rule)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights must be the same when a run continues
        encoder = create_region_encoder(config, arguments.weights).to(device)
    images, paths = remote.resolve(names[0], Path()), None
    failures: list[ImageError] = []
    if len(names) > 1 or not arguments.boxes:
        paths, images, failures = _find_images(names)
        if not paths:
            list_failures(failures)
            return 1
    if arguments.boxes:
        with remote.local_copy(remote.resolve(arguments.boxes, Path())) as boxes:
            data = read_boxes(boxes, paths or images, arguments.box_format, arguments.on_bad)
    else:
        data = BoxFile(whole_images(paths or []), ())
    report = compute_features(
        encoder, data.images, images, out, arguments.storage, arguments.dtype, arguments.draw, compute
    )
    if data.problems:
        problems = remote.join(out, _PROBLEMS)
        remote.write_text("\n".join(data.problems) + "\n", problems)
        message(f"{len(data.problems)} boxes or images were clipped or skipped; see {problems}")
    line(f"{report.vectors} vectors of length {encoder.length} in {report.files} files: {out}")
    failures += [*data.failures, *report.failures]
    list_failures(failures)
    return 1 if failures else 0


def _check_options(arguments: Namespace, names: Sequence[str]) -> None:
    if arguments.boxes:
        if len(names) > 1 and any(map(remote.is_url, names)):
            raise ValueError(f"images: expected one URL with --boxes, got {len(names)} names; give their folder")
        return
    for name, default in (("box_format", None), ("on_bad", "raise")):
        if (value := arguments[name]) != default:
            raise ValueError(f"{name}: expected no value without --boxes, got {value}")
    if arguments.cell_rule == "roi_pool":  # rounds the edges of images to cells beyond their maps
        raise ValueError("cell_rule: expected paper or released without --boxes, got roi_pool")


def _find_images(names: Sequence[str]) -> tuple[list[Any], Path | str, list[ImageError]]:
    """Return the images, the folder that their names are relative to, and an error for each name without an image."""
    from sppnet.data.listing import list_image_names

    found, failures = collect_images(names, list_image_names)
    paths = [_absolute(name) for name in found]
    if len(names) == 1 and (remote.is_url(names[0]) or os.path.isdir(names[0])):  # noqa: PTH112
        return paths, _absolute(names[0]), failures
    folders = [path.parent for path in paths if isinstance(path, Path)]
    return paths, Path(os.path.commonpath(folders)) if folders else "", failures


def _absolute(name: str) -> Path | str:
    return name if remote.is_url(name) else Path(os.path.abspath(name))  # noqa: PTH100
