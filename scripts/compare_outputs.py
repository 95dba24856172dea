"""Record the outputs of the main commands on real images, or compare two such records bit for bit.

Run it before and after a refactoring, on the same machine::

    python scripts/compare_outputs.py record DATA before.json
    python scripts/compare_outputs.py record DATA after.json
    python scripts/compare_outputs.py compare before.json after.json

DATA holds ``imagenet`` (photographs), ``caltech101`` (``train`` and ``val`` folders of class folders), ``bccd`` (VOC
layout) and ``camvid`` (``train``, ``trainannot``, ``val``, ``valannot``). Everything runs with one thread. A record
holds the JSON that each command prints and the SHA-256 of each array; ``compare`` exits with 1 if anything differs.
It first converts results that have the keys of an earlier version, see `CHANGED_KEYS`.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read by torch on import, and inherited by the subprocesses.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

PHOTOGRAPHS, ENCODED, BOXES, CLASSES, DETECTION_IMAGES, MASK_IMAGES = 100, 50, 200, 10, 10, 40
EXPORT_SIZES = ((224, 224), (97, 401), (333, 150), (64, 64))


def run(*arguments: str | Path) -> str:
    """Run one sppnet command and return its standard output."""
    command = [sys.executable, "-m", "sppnet", *map(str, arguments)]
    sys.stderr.write(f"+ sppnet {' '.join(map(str, arguments))}\n")
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {finished.returncode}:\n{finished.stderr}")
    return finished.stdout


def read_json_lines(text: str) -> list[Any]:
    """Decode concatenated JSON objects."""
    decoder, objects, offset = json.JSONDecoder(), [], 0
    while (offset := len(text) - len(text[offset:].lstrip())) < len(text):
        content, offset = decoder.raw_decode(text, offset)
        objects.append(content)
    return objects


def digest_array(array: np.ndarray) -> str:
    """Return dtype, shape and SHA-256 of an array as text."""
    return f"{array.dtype} {list(array.shape)} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def digest_tensors(file: Path) -> dict[str, str]:
    """Return the digest of each tensor of a safetensors file."""
    with safe_open(file, "np") as tensors:
        return {name: digest_array(tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118


def record_prediction(data: Path) -> Any:
    """Classify photographs with the embedded network."""
    copy_files(sorted((data / "imagenet").iterdir())[:PHOTOGRAPHS], Path("photographs"))
    return read_json_lines(run("predict", "imagenet", "photographs", "--json"))


def record_features(_data: Path) -> Any:
    """Compute the vectors of random boxes."""
    draw = random.Random(0)
    images = sorted((Path("photographs")).iterdir())[:ENCODED]
    with (Path("boxes.csv")).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "x1", "y1", "x2", "y2"))
        for path in images:
            width, height = Image.open(path).size
            for _ in range(BOXES):
                (x1, x2), (y1, y2) = (sorted(draw.sample(range(side + 1), 2)) for side in (width, height))
                rows.writerow((path.name, x1, y1, x2, y2))
    run("features", "photographs", "--boxes", "boxes.csv", "--out", "vectors")
    return {path.name: digest_tensors(path) for path in sorted((Path("vectors")).glob("*.safetensors"))}


def record_classification(data: Path) -> Any:
    """Train a classifier on frozen features and evaluate it."""
    for name in sorted(folder.name for folder in (data / "caltech101" / "train").iterdir())[:CLASSES]:
        for split in ("train", "val"):
            if (data / "caltech101" / split / name).is_dir():
                copy_files(sorted((data / "caltech101" / split / name).iterdir()), Path("classes") / split / name)
    run("train", "classify", "classes", "--freeze-backbone", "--out", "classifier")
    return {
        "weights": digest_tensors(Path("classifier") / "model.safetensors"),
        "evaluation": read_json_lines(run("evaluate", "classifier", "classes", "--json")),
    }


def record_detection(data: Path) -> Any:
    """Train a detector on a few images and evaluate it on the same images."""
    source, target = data / "bccd", Path("voc")
    names = (source / "ImageSets" / "Main" / "train.txt").read_text().split()[:DETECTION_IMAGES]
    copy_files([source / "JPEGImages" / f"{name}.jpg" for name in names], target / "JPEGImages")
    copy_files([source / "Annotations" / f"{name}.xml" for name in names], target / "Annotations")
    (target / "ImageSets" / "Main").mkdir(parents=True)
    (target / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names) + "\n")
    run("train", "detect", "voc", "--split", "train", "--out", "detector", "--epochs", "2")
    return {
        "weights": digest_tensors(Path("detector") / "model.safetensors"),
        "evaluation": read_json_lines(run("evaluate", "detector", "voc", "--split", "train", "--json")),
        "prediction": read_json_lines(run("predict", "detector", "voc/JPEGImages", "--json")),
    }


def record_segmentation(data: Path) -> Any:
    """Train a segmenter for one epoch and evaluate it."""
    for split, count in (("train", MASK_IMAGES), ("val", MASK_IMAGES // 4)):
        images = sorted((data / "camvid" / split).iterdir())[:count]
        stems = {path.stem for path in images}
        masks = [path for path in sorted((data / "camvid" / f"{split}annot").iterdir()) if path.stem in stems]
        copy_files(images, Path("masks") / split)
        copy_files(masks, Path("masks") / f"{split}annot")
    run("train", "segment", "masks", "--out", "segmenter", "--epochs", "1")
    return {
        "weights": digest_tensors(Path("segmenter") / "model.safetensors"),
        "evaluation": read_json_lines(run("evaluate", "segmenter", "masks", "--json")),
        "prediction": read_json_lines(run("predict", "segmenter", "masks/val", "--json")),
    }


def record_export(_data: Path) -> Any:
    """Export the classifier of `record_classification` and run the file."""
    import onnxruntime

    run("export", "classifier", "--out", "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    logits = {}
    for height, width in EXPORT_SIZES:
        image = draw.standard_normal((2, 3, height, width), dtype=np.float32)
        logits[f"{height}x{width}"] = digest_array(session.run(None, {"image": image})[0])
    return logits


def copy_files(files: list[Path], folder: Path) -> None:
    """Copy files into a new folder."""
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)


RECORDS = {
    "predict": record_prediction,
    "features": record_features,
    "classify": record_classification,
    "detect": record_detection,
    "segment": record_segmentation,
    "export": record_export,
}


def record(data: Path) -> dict[str, Any]:
    """Run all commands in a temporary folder, so that records contain no paths of the machine."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        contents = {name: function(data) for name, function in RECORDS.items()}
        os.chdir(data)  # the folder cannot be removed on Windows while it is the current one
    contents["machine"] = f"{platform.machine()}, torch {torch.__version__}"
    return contents


def list_scores(top: list[Any]) -> list[Any]:
    """Convert (label, score) pairs."""
    return [entry if isinstance(entry, dict) else dict(zip(("label", "score"), entry, strict=True)) for entry in top]


def list_shares(classes: Any) -> Any:
    """Convert a mapping from labels to shares."""
    if isinstance(classes, list):
        return classes
    pairs = sorted(classes.items(), key=lambda pair: -pair[1])
    return [{"label": label, "share": share} for label, share in pairs]


# Keys of results that had other values in earlier versions, with the conversion; None: removed.
CHANGED_KEYS: dict[str, Callable[[Any], Any] | None] = {
    "top": list_scores,
    "classes": list_shares,
    "tiles": None,
    "files": None,
}


def with_current_keys(content: Any) -> Any:
    """Convert the results of images in a record to the keys of this version, without changing values."""
    if isinstance(content, list):
        return [with_current_keys(part) for part in content]
    if not isinstance(content, dict):
        return content
    if "source" not in content:
        return {key: with_current_keys(value) for key, value in content.items()}
    converters = {key: CHANGED_KEYS.get(key, lambda value: value) for key in content}
    return {key: convert(content[key]) for key, convert in converters.items() if convert is not None}


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """List the differences between two records, each with its path."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        missing = object()
        return [
            line
            for key in keys
            for line in differences(before.get(key, missing), after.get(key, missing), f"{path}/{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for number, pair in pairs for line in differences(*pair, f"{path}/{number}")]
    # repr distinguishes -0.0 from 0.0 and treats NaN as equal to itself.
    return [] if repr(before) == repr(after) else [f"{path}: {before!r} became {after!r}"]


def main() -> int:
    """Record or compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the commands and write their outputs")
    recording.add_argument("data", type=Path, help="folder of the four data sets")
    recording.add_argument("out", type=Path, help="JSON file to write")
    comparing = commands.add_parser("compare", help="compare two records")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "record":
        out = arguments.out.resolve()
        out.write_text(json.dumps(record(arguments.data.resolve()), indent=1) + "\n")
        return 0
    records = (with_current_keys(json.loads(file.read_text())) for file in (arguments.before, arguments.after))
    lines = differences(*records)
    sys.stdout.writelines(f"{line}\n" for line in [*lines, f"{len(lines)} differences"])
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
