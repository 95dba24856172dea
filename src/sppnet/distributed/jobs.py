"""Jobs that Ray workers run on part of the images: prediction and box features."""

import dataclasses
import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from sppnet.classify.model import Classifier
from sppnet.classify.predict import Prediction, predict_images
from sppnet.data.images import load_image
from sppnet.data.listing import image_source
from sppnet.detect.model import Detector, result_content
from sppnet.detect.proposals import propose
from sppnet.devices import pick_device
from sppnet.errors import ImageError
from sppnet.features.encoder import RegionEncoder
from sppnet.features.files import Dtype, FileTask, PieceTask, compute_files
from sppnet.inference.results import filter_by_score
from sppnet.io import remote
from sppnet.io.part_files import failure_line
from sppnet.registry import Model, load
from sppnet.training.run import CONFIG, WEIGHTS

# Concurrent reads per process from an object store, and number of images to prefetch.
_READERS, _PREFETCH = 8, 16


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


# An image as load_image takes it, or the error of an image that cannot be read. Sources are pairs (name, source).
Source = Path | bytes | ImageError
Sources = Iterable[tuple[str, Source]]
Answers = Iterator[dict[str, Any] | ImageError]


@dataclasses.dataclass
class PredictJob:
    """Prediction for the images of a part, written to one JSON Lines file.

    Attributes:
        model: model to run.
        answer: function that yields a prediction for each image, in order.
        folder: output folder.
        here: folder to which image names are relative.
    """

    model: Model
    answer: Callable[[Any, Sources], Answers]
    folder: Path | str
    here: Path

    def start(self, device: str) -> None:
        """Move the model to the device."""
        self.model.to(pick_device(device)).eval()

    def run(self, task: str) -> str:
        """Write a part and return its failures as JSON."""
        content = json.loads(task)
        lines, failures = [], []
        for name, answer in zip(content["names"], self.answer(self.model, self._read(content["names"])), strict=True):
            if isinstance(answer, ImageError):
                failures.append((name, answer.reason))
                lines.append(failure_line(name, answer.reason))
            else:
                lines.append(json.dumps(answer))
        remote.write_text("".join(f"{line}\n" for line in lines), remote.join(self.folder, content["file"]))
        return json.dumps(failures)

    def _read(self, names: Sequence[str]) -> Sources:
        """Yield the images, with prefetching."""
        with ThreadPoolExecutor(_READERS) as pool:
            remaining = iter(names)
            pending = deque(pool.submit(_read_source, name, self.here) for name in islice(remaining, _PREFETCH))
            for name in names:
                source = pending.popleft().result()
                pending.extend(pool.submit(_read_source, later, self.here) for later in islice(remaining, 1))
                yield name, source


def _read_source(name: str, folder: Path) -> Source:
    try:
        return image_source(remote.resolve(name, folder))
    except ImageError as error:
        return error


def classify_images(model: Classifier, sources: Sources, *, batch: int, resize: str | None, views: str) -> Answers:
    """Yield the JSON content of `sppnet predict --json` for each image, batched as in the local engine."""
    remaining = iter(sources)
    while chunk := list(islice(remaining, batch)):
        readable = [source for _, source in chunk if not isinstance(source, ImageError)]
        answers = predict_images(model, readable, resize=resize, views=views, batch=batch)
        for name, source in chunk:
            answer = source if isinstance(source, ImageError) else next(answers)
            if isinstance(answer, Prediction):
                yield dataclasses.asdict(dataclasses.replace(answer, source=name))
            else:
                yield answer if isinstance(answer, ImageError) else answer.error


def detect_images(model: Detector, sources: Sources, *, least: float) -> Answers:
    """Yield the JSON content of `sppnet predict --json` for each image, with objects that score at least `least`."""
    config = model.config
    for name, source in sources:
        try:
            if isinstance(source, ImageError):
                raise source
            image = load_image(source)
        except ImageError as error:
            yield error
            continue
        windows = propose(image, config.proposals, max_windows=config.windows, seconds=config.proposal_seconds)
        yield result_content(name, image, filter_by_score(model.detect(image, windows), least), config.classes)


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
