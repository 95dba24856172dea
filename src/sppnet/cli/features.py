"""`sppnet features`: compute feature vectors of boxes and write them to files."""

import re
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace

from sppnet.backbones.backbone import Backbone, create_backbone
from sppnet.backbones.weights import EMBEDDED_BACKBONE
from sppnet.cli import engine
from sppnet.cli.common import list_failures, parse_level_text, print_error
from sppnet.console import console, results
from sppnet.data.formats.boxes import BoxFormat, OnBad, read_boxes
from sppnet.devices import pick_device
from sppnet.features.encoder import RegionEncoder
from sppnet.features.files import Dtype
from sppnet.features.shards import Storage
from sppnet.features.vectors import compute_features
from sppnet.io import remote
from sppnet.ops.bins import CellRule
from sppnet.ops.reference import Reduce

_PROBLEMS = "problems.txt"


def features_parser() -> ArgumentParser:
    """Build the argument parser of `sppnet features`."""
    parser = ArgumentParser(
        description="Write one feature vector per box. The network runs once per image, and a pyramid is pooled over"
        " the cells of each box. DIR receives files of at most 250 MB and index.json. Run the same command again to"
        " continue after an interruption. sppnet.features.vectors.read_features(DIR) reads the vectors image by image."
    )
    add = parser.add_argument
    add("images", help="image or folder of images, as a path or a URL such as s3://bucket/photos")
    add("--boxes", required=True, metavar="FILE", help="box file: .csv, .jsonl, or COCO .json")
    add("--out", required=True, metavar="DIR", help="output folder, as a path or a URL")
    add("--box-format", type=BoxFormat | None, help="xyxy or xywh, optionally -normalised; default: as in the file")
    add("--on-bad", type=OnBad, default="raise", help="invalid boxes: raise an error, clip to the image, or drop")
    add("--backbone", default=EMBEDDED_BACKBONE, help="timm network, or zf5, convnet5, overfeat5, overfeat7")
    add("--stage", type=int | None, help="feature map: 0 (finest) to -1 (coarsest); default: the classifier's input")
    add("--weights", default="auto", help="auto, hub (timm download), none (random with a fixed seed), or a file")
    add("--levels", type=str, default="6,3,2,1", help="pyramid levels, such as 6,3,2,1 or 2x3,1")
    add("--scales", type=str, default="688", help="shorter sides in pixels; one is chosen for each box")
    add("--max-side", type=int, default=2000, help="largest longer side in pixels")
    add("--rule", type=CellRule, default="paper", help="mapping of boxes to cells: paper, released or roi_pool")
    add("--reduce", type=Reduce, default="max", help="pooling within a bin: max or avg")
    add("--format", type=Storage, default="safetensors", help="file format: safetensors or parquet")
    add("--dtype", type=Dtype, default="float16", help="dtype of the vectors: float16 or float32")
    add("--draw", type=int, default=0, metavar="N", help="before the run, draw boxes and cells of the first N images")
    engine.add_engine_options(parser)
    add("--device", default="auto", help="device: auto, cpu, cuda or mps")
    return parser


def features(arguments: Namespace) -> int:
    """Write the vectors and return 0, or 1 if an image could not be used."""
    levels, scales = parse_level_text(arguments.levels), _parse_scales(arguments.scales)
    images, out = remote.resolve(arguments.images, Path()), remote.resolve(arguments.out, Path())
    compute = engine.features_engine(arguments)
    device = pick_device("cpu" if compute else arguments.device)
    encoder = RegionEncoder(
        _backbone(arguments), levels, scales, arguments.max_side, arguments.rule, arguments.reduce
    ).to(device)
    with console.status("reading boxes"), remote.local_copy(remote.resolve(arguments.boxes, Path())) as boxes:
        data = read_boxes(boxes, images, arguments.box_format, arguments.on_bad)
    report = compute_features(
        encoder, data.images, images, out, arguments.format, arguments.dtype, arguments.draw, compute
    )
    if data.problems:
        problems = remote.join(out, _PROBLEMS)
        remote.write_text("\n".join(data.problems) + "\n", problems)
        print_error(f"{len(data.problems)} boxes or images were clipped or skipped; see {problems}")
    results.print(
        f"{report.vectors} vectors of length {encoder.length} in {report.files} files: {out}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    list_failures(report.failures, ())
    return 1 if report.failures else 0


def _parse_scales(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", text):
        raise ValueError(f"scales: expected pixels such as 688 or 480,576,688,864,1200, got {text!r}")
    return tuple(map(int, text.split(",")))


def _backbone(arguments: Namespace) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights must be the same when a run continues
        return create_backbone(arguments.backbone, arguments.stage, arguments.weights)
