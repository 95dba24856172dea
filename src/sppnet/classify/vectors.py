"""Pyramid vectors of a data set, computed once and cached on disk."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float16, Int
from torch import Tensor

from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.weights import weights_digest
from sppnet.classify.model import Classifier
from sppnet.classify.predict import image_vectors, read_image
from sppnet.data.formats.classification import Sample
from sppnet.data.resize import Resize
from sppnet.errors import ImageError
from sppnet.io.files import read_tensors, save_tensors
from sppnet.progress import track

_SHARD = 64


@dataclass(frozen=True)
class Vectors:
    """Pyramid vectors and class indices of the readable images of a data set, and the errors of the others."""

    data: Float16[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    failures: tuple[ImageError, ...]


def compute_vectors(
    model: Classifier, samples: Sequence[Sample], policy: Resize, folder: Path, description: str
) -> Vectors:
    """Compute the vectors of the samples in half precision, or read them from the cache.

    Vectors are written in shards, and a killed call computes only the missing shards. The cache key covers the
    backbone, its weights, the pyramid, the resize policy and the files with their labels. Several runs may use the same
    cache at the same time.

    Args:
        model: classifier; its head is not used.
        samples: images and labels.
        policy: resize policy.
        folder: cache folder, with a subfolder for each key.
        description: label of the progress bar.
    """
    cache = folder / _cache_key(model, samples, policy)
    cache.mkdir(parents=True, exist_ok=True)
    shards = [samples[start : start + _SHARD] for start in range(0, len(samples), _SHARD)]
    paths = [cache / f"{number:05d}.safetensors" for number in range(len(shards))]
    todo = [number for number, path in enumerate(paths) if not path.exists()]
    with evaluation_mode(model), torch.inference_mode():
        for number in track(todo, description, len(shards), len(shards) - len(todo)):
            _compute_shard(model, shards[number], policy, paths[number])
    parts = [read_tensors(path) for path in paths]
    failures = [ImageError(*pair) for _, metadata in parts for pair in json.loads(metadata["failures"])]
    return Vectors(
        torch.cat([tensors["vectors"] for tensors, _ in parts]),
        torch.cat([tensors["labels"] for tensors, _ in parts]),
        tuple(failures),
    )


def _compute_shard(model: Classifier, samples: Sequence[Sample], policy: Resize, path: Path) -> None:
    images, labels, failures = [], [], []
    for sample in samples:
        try:
            images.append(read_image(model, sample.path, policy).image)
            labels.append(sample.label)
        except ImageError as error:
            failures.append((error.path, error.reason))
    width = model.backbone.channels * model.pool.bins
    vectors = image_vectors(model, images).half().cpu() if images else torch.empty(0, width).half()
    tensors = {"vectors": vectors, "labels": torch.tensor(labels, dtype=torch.long)}
    save_tensors(tensors, path, {"failures": json.dumps(failures)})


def _cache_key(model: Classifier, samples: Sequence[Sample], policy: Resize) -> str:
    """Return a digest of everything that determines the vectors."""
    digest = hashlib.sha256(weights_digest(model.backbone).encode())
    config = model.config
    parts = (config.backbone, config.stage, config.levels, config.reduce, config.rule, str(policy), policy.max_pixels)
    digest.update(repr(parts).encode())
    for sample in samples:
        digest.update(os.fsencode(os.path.realpath(sample.path)))
        digest.update(f" {_stamp(sample.path)} {sample.label}\n".encode())
    return digest.hexdigest()[:16]


def _stamp(path: Path) -> str:
    """Return a text that changes with the content of a file; reading a missing file is reported later."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
