"""`sppnet features`: compute feature vectors of boxes and write them to files."""

from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from sppnet.backbones.names import PAPER_BACKBONES
from sppnet.cli import engine
from sppnet.cli.common import list_failures
from sppnet.cli.console import line, message
from sppnet.cli.parser import CommandParser, levels, numbers, options_of
from sppnet.data.formats.box_formats import BoxFormat, OnBad
from sppnet.features.options import Dtype, RegionEncoderConfig, Storage
from sppnet.io import remote
from sppnet.ops.levels import CellRule

_PROBLEMS = "problems.txt"


def features_parser() -> CommandParser:
    """Build the argument parser of `sppnet features`."""
    parser = CommandParser(
        "features",
        "Write one feature vector per box. The network runs once per image, and a pyramid is pooled over the cells of"
        " each box. DIR receives files of at most 250 MB and index.json. Run the same command again to continue after"
        " an interruption. sppnet.features.vectors.read_features(DIR) reads the vectors image by image.",
    )
    option, config = parser.option, RegionEncoderConfig()
    option("data", "images", "image or folder of images, as a path or a URL such as s3://bucket/photos")
    option("data", "--boxes", "box file: .csv, .jsonl, or COCO .json", required=True, metavar="FILE")
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

    from sppnet.data.formats.boxes import read_boxes
    from sppnet.devices import pick_device
    from sppnet.features.encoder import create_region_encoder
    from sppnet.features.vectors import compute_features

    images, out = (remote.resolve(name, Path()) for name in (arguments.images, arguments.out))
    compute = engine.features_engine(arguments)
    if arguments.draw < 0:
        raise ValueError(f"draw: expected 0 or more images, got {arguments.draw}")
    device = pick_device("cpu" if compute else arguments.device)
    config = replace(options_of(RegionEncoderConfig, arguments), rule=arguments.cell_rule)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights must be the same when a run continues
        encoder = create_region_encoder(config, arguments.weights).to(device)
    with remote.local_copy(remote.resolve(arguments.boxes, Path())) as boxes:
        data = read_boxes(boxes, images, arguments.box_format, arguments.on_bad)
    report = compute_features(
        encoder, data.images, images, out, arguments.storage, arguments.dtype, arguments.draw, compute
    )
    if data.problems:
        problems = remote.join(out, _PROBLEMS)
        remote.write_text("\n".join(data.problems) + "\n", problems)
        message(f"{len(data.problems)} boxes or images were clipped or skipped; see {problems}")
    line(f"{report.vectors} vectors of length {encoder.length} in {report.files} files: {out}")
    failures = (*data.failures, *report.failures)
    list_failures(failures)
    return 1 if failures else 0
