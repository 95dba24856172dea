"""What a Ray worker does with a part of the images."""

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
from sppnet.detect.model import Detector, content_of
from sppnet.detect.proposals import propose
from sppnet.devices import pick_device
from sppnet.errors import ImageError
from sppnet.features.encoder import RegionEncoder
from sppnet.features.files import Dtype, FileTask, PieceTask, compute_files
from sppnet.inference.results import above
from sppnet.io import remote
from sppnet.io.part_files import failure_line
from sppnet.registry import Model, load
from sppnet.training.run import CONFIG, WEIGHTS

# Files of an object store that a process reads at a time, and how many images it holds that nobody has asked for yet.
_READERS, _AHEAD = 8, 16


def load_run(run: str) -> Model:
    """The model of a run, whose folder may be a URL."""
    if not remote.is_url(run):
        return load(run)
    with tempfile.TemporaryDirectory() as folder:
        for name in (CONFIG, WEIGHTS):
            try:
                (Path(folder) / name).write_bytes(remote.read_bytes(remote.join(run, name)))
            except FileNotFoundError as error:
                raise ValueError(f"run: expected a folder that `sppnet train` wrote; {error}") from error
        return load(folder)


# An image as load_image takes it, or why there is none; each with its name.
Source = Path | bytes | ImageError
Sources = Iterable[tuple[str, Source]]
Answers = Iterator[dict[str, Any] | ImageError]


@dataclasses.dataclass
class PredictJob:
    """Answers for the images of a part, as one file of JSON lines.

    Attributes:
        model: that answers.
        answer: what it is asked: an answer for each image, in order.
        folder: of the files.
        here: folder that names of images are relative to.
    """

    model: Model
    answer: Callable[[Any, Sources], Answers]
    folder: Path | str
    here: Path

    def start(self, device: str) -> None:
        """Move the model."""
        self.model.to(pick_device(device)).eval()

    def run(self, task: str) -> str:
        """Write a part; the failures in it, as JSON."""
        content = json.loads(task)
        lines, failures = [], []
        for name, found in zip(content["names"], self.answer(self.model, self._read(content["names"])), strict=True):
            if isinstance(found, ImageError):
                failures.append((name, found.reason))
                lines.append(failure_line(name, found.reason))
            else:
                lines.append(json.dumps(found))
        remote.write_text("".join(f"{line}\n" for line in lines), remote.join(self.folder, content["file"]))
        return json.dumps(failures)

    def _read(self, names: Sequence[str]) -> Sources:
        """The images, some of them read ahead."""
        with ThreadPoolExecutor(_READERS) as pool:
            rest = iter(names)
            ahead = deque(pool.submit(_source, name, self.here) for name in islice(rest, _AHEAD))
            for name in names:
                source = ahead.popleft().result()
                ahead.extend(pool.submit(_source, later, self.here) for later in islice(rest, 1))
                yield name, source


def _source(name: str, here: Path) -> Source:
    try:
        return image_source(remote.place(name, here))
    except ImageError as error:
        return error


def classify_images(model: Classifier, sources: Sources, *, batch: int, resize: str | None, views: str) -> Answers:
    """What `sppnet predict --json` tells of each image; in batches, as the local engine has them."""
    rest = iter(sources)
    while chunk := list(islice(rest, batch)):
        good = [source for _, source in chunk if not isinstance(source, ImageError)]
        answers = predict_images(model, good, resize=resize, views=views, batch=batch)
        for name, source in chunk:
            answer = source if isinstance(source, ImageError) else next(answers)
            if isinstance(answer, Prediction):
                yield dataclasses.asdict(dataclasses.replace(answer, source=name))
            else:
                yield answer if isinstance(answer, ImageError) else answer.error


def detect_images(model: Detector, sources: Sources, *, least: float) -> Answers:
    """What `sppnet predict --json` tells of each image."""
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
        yield content_of(name, image, above(model.detect(image, windows), least), config.classes)


@dataclasses.dataclass
class FeaturesJob:
    """Vectors of the boxes of a file of images.

    Attributes:
        encoder: makes the vectors.
        dtype: of the vectors.
        here: folder that paths are relative to.
    """

    encoder: RegionEncoder
    dtype: Dtype
    here: Path

    def start(self, device: str) -> None:
        """Move the encoder."""
        self.encoder.to(pick_device(device)).eval()

    def run(self, task: str) -> str:
        """Write a file; what could not be read is in it."""
        content = json.loads(task)
        pieces = [
            PieceTask(name, remote.place(path, self.here), torch.tensor(boxes, dtype=torch.float32), ids)
            for name, path, boxes, ids in content["pieces"]
        ]
        file = FileTask(remote.place(content["file"], self.here), content["source"], pieces)
        with torch.inference_mode():
            for _ in compute_files(self.encoder, [file], self.dtype):
                pass
        return ""
