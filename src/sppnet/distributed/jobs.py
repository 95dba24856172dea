"""Jobs that Ray workers run on part of the images: prediction and box features."""

import dataclasses
import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from sppnet.classify.model import Classifier
from sppnet.classify.predict import TOP, predict_images
from sppnet.data.listing import image_source
from sppnet.devices import pick_device
from sppnet.errors import ImageError
from sppnet.features.encoder import RegionEncoder
from sppnet.features.files import FileTask, PieceTask, compute_files
from sppnet.features.options import Dtype
from sppnet.inference.results import Failure, Result
from sppnet.io import remote
from sppnet.registry import Model, load
from sppnet.training.run import CONFIG, WEIGHTS

# Concurrent reads per process from an object store, and number of images to prefetch.
_READERS, _PREFETCH = 8, 16

# Image for load_image, or the error of an image that cannot be read.
Source = Path | bytes | ImageError
Predict = Callable[[Any, Sequence[Path | bytes]], Sequence[Result | Failure]]


def load_remote(run: str) -> Model:
    """Load the model of a run folder, which may be a URL."""
    if not remote.is_url(run):
        return load(run)
    with tempfile.TemporaryDirectory() as folder:
        for name in (CONFIG, WEIGHTS):
            try:
                (Path(folder) / name).write_bytes(remote.read_bytes(remote.join(run, name)))
            except FileNotFoundError as error:
                raise ValueError(f"run: expected a folder written by `sppnet train`, got {run}; {error}") from error
        return load(folder)


@dataclasses.dataclass
class PredictJob:
    """Prediction for the images of a part, written to one JSON Lines file.

    Attributes:
        model: model to run.
        predict: function that returns the result of each image.
        batch: number of images to predict together.
        folder: output folder.
        here: folder to which image names are relative.
    """

    model: Model
    predict: Predict
    batch: int
    folder: Path | str
    here: Path

    def start(self, device: str) -> None:
        """Move the model to the device."""
        self.model.to(pick_device(device)).eval()

    def run(self, task: str) -> str:
        """Write a part and return its failures, as (name, reason) in JSON."""
        content = json.loads(task)
        results: list[Result | Failure] = []
        images = zip(content["names"], self._read(content["names"]), strict=True)
        while chunk := list(islice(images, self.batch)):
            readable = [source for _, source in chunk if not isinstance(source, ImageError)]
            answers = iter(self.predict(self.model, readable))
            for name, source in chunk:
                answer = Failure(name, source) if isinstance(source, ImageError) else next(answers)
                results.append(dataclasses.replace(answer, source=name))
        lines = "".join(f"{json.dumps(result.to_dict())}\n" for result in results)
        remote.write_text(lines, remote.join(self.folder, content["file"]))
        return json.dumps([(result.source, result.error.reason) for result in results if isinstance(result, Failure)])

    def _read(self, names: Sequence[str]) -> Iterator[Source]:
        """Yield the images, with prefetching."""
        with ThreadPoolExecutor(_READERS) as pool:
            remaining = iter(names)
            pending = deque(pool.submit(_read_source, name, self.here) for name in islice(remaining, _PREFETCH))
            while pending:
                source = pending.popleft().result()
                pending.extend(pool.submit(_read_source, name, self.here) for name in islice(remaining, 1))
                yield source


def _read_source(name: str, folder: Path) -> Source:
    try:
        return image_source(remote.resolve(name, folder))
    except ImageError as error:
        return error


def classify(
    model: Classifier,
    sources: Sequence[Path | bytes],
    *,
    resize: str | None,
    views: str,
    unknown: bool = False,
    top: int = TOP,
) -> list[Result | Failure]:
    """Classify one batch, without the warnings of :meth:`sppnet.Classifier.predict`."""
    batch = max(len(sources), 1)
    options: dict[str, Any] = {"resize": resize, "views": views, "unknown": unknown, "top": top}
    return list(predict_images(model, sources, batch=batch, **options))


@dataclasses.dataclass
class FeaturesJob:
    """Computation of the box vectors of one output file.

    Attributes:
        encoder: encoder of the boxes.
        dtype: dtype of the vectors.
        here: folder to which paths are relative.
    """

    encoder: RegionEncoder
    dtype: Dtype
    here: Path

    def start(self, device: str) -> None:
        """Move the encoder to the device."""
        self.encoder.to(pick_device(device)).eval()

    def run(self, task: str) -> str:
        """Write a file of vectors, which also lists the images that could not be read."""
        content = json.loads(task)
        pieces = [
            PieceTask(name, remote.resolve(path, self.here), torch.tensor(boxes, dtype=torch.float32), ids)
            for name, path, boxes, ids in content["pieces"]
        ]
        file = FileTask(remote.resolve(content["file"], self.here), content["source"], pieces)
        with torch.inference_mode():
            for _ in compute_files(self.encoder, [file], self.dtype):
                pass
        return ""
