"""Pyramid vectors of a data set, computed once and cached on disk."""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float16, Int
from torch import Tensor

from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.weights import weights_digest
from sppnet.classify.model import Classifier
from sppnet.classify.predict import LoadedImage, image_vectors, map_batches, read_image
from sppnet.data.formats.classification import Sample
from sppnet.data.resize import Resize
from sppnet.errors import ImageError
from sppnet.inference.parallel import map_ordered
from sppnet.progress import track
from sppnet.training.cache import GIGABYTE, content_digest, format_size, open_cache

_logger = logging.getLogger(__name__)

_BATCH = 32  # images loaded at a time, unless they are processed on the CPU


@dataclass(frozen=True)
class Vectors:
    """Pyramid vectors and class indices of the readable images of a data set, and the errors of the others."""

    data: Float16[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    failures: tuple[ImageError, ...]


def compute_vectors(
    model: Classifier,
    samples: Sequence[Sample],
    policy: Resize,
    folder: Path,
    description: str,
    limit: float = 20 * GIGABYTE,
) -> Vectors:
    """Compute the vectors of the samples in half precision, or read them from the cache.

    The cache has a file for each image, and a killed call computes only the missing ones. A file is found by the
    content of the image, the backbone and its weights, the pyramid and the resize policy. Several runs may use the same
    cache at the same time.

    Args:
        model: classifier; its head is not used.
        samples: images and labels.
        policy: resize policy.
        folder: cache folder, with a subfolder for each backbone, pyramid and policy.
        description: label of the progress bar.
        limit: largest size of the cache folder, in bytes.

    Raises:
        ValueError: the vectors would exceed the limit or the free disk space.
    """
    settings = {
        "content": "pyramid vectors",
        **model.vector_settings,
        "weights": weights_digest(model.backbone),
        "resize": str(policy),
        "max_pixels": policy.max_pixels,
    }
    paths = list(dict.fromkeys(sample.path for sample in samples))
    digests = dict(zip(paths, map_ordered(content_digest, paths), strict=True))
    results: dict[Path, Tensor | ImageError] = {}
    with open_cache(folder, settings, limit) as cache:
        for path, digest in digests.items():
            if digest and (tensors := cache.read(digest)):
                results[path] = tensors["vector"]
        todo = [path for path in paths if path not in results]
        reserved = False
        with evaluation_mode(model), closing(_compute(model, todo, policy)) as computed:
            for path, result in zip(todo, track(computed, description, len(paths), len(results)), strict=True):
                if isinstance(result, Tensor) and (digest := digests[path]):
                    if not reserved:
                        cache.reserve(len(todo), {"vector": result})
                        reserved = True
                    cache.write(digest, {"vector": result})
                results[path] = result
        if todo:
            _logger.info(
                f"computed {len(todo)} of {len(paths)} vectors; the cache {folder} has {format_size(cache.used())}"
            )
    readable = [sample for sample in samples if isinstance(results[sample.path], Tensor)]
    vectors = [result for sample in readable if isinstance(result := results[sample.path], Tensor)]
    return Vectors(
        torch.stack(vectors) if vectors else torch.empty(0, model.vector_length).half(),
        torch.tensor([sample.label for sample in readable], dtype=torch.long),
        tuple(result for sample in samples if isinstance(result := results[sample.path], ImageError)),
    )


def _compute(
    model: Classifier, paths: Sequence[Path], policy: Resize
) -> Generator[Float16[Tensor, " d"] | ImageError, None, None]:
    """Yield the vector of each image, or the error of one that cannot be used."""

    def load(path: Path) -> LoadedImage | ImageError:
        try:
            return read_image(model, path, policy)
        except ImageError as error:
            return error

    def run(items: list[LoadedImage | ImageError]) -> list[Tensor | ImageError]:
        images = [item.image for item in items if isinstance(item, LoadedImage)]
        vectors = iter(image_vectors(model, images).half().cpu() if images else ())
        return [next(vectors) if isinstance(item, LoadedImage) else item for item in items]

    return map_batches(load, run, paths, model.device, _BATCH)
