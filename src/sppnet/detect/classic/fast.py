"""Fast R-CNN: joint training of backbone and head on the regions of two images per batch (Girshick, 2015)."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import ImageOps
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sppnet.backbones.backbone import Backbone
from sppnet.backbones.paper import PAPER_NETS
from sppnet.backbones.stages import modules_until
from sppnet.data.images import load_image
from sppnet.detect.classic.finetune import POSITIVE_SHARE, draw_windows, positives
from sppnet.detect.classic.vector_scale import mean_square_scale, spread_rows
from sppnet.detect.classic.windows import Windows, usable_images
from sppnet.detect.model import Detector, create_fc
from sppnet.detect.options import DetectOptions
from sppnet.errors import ImageError
from sppnet.features.encoder import RegionEncoder
from sppnet.ops.boxes import encode, mirror
from sppnet.ops.regions import region_pyramid_pool
from sppnet.training.loop import fit

_IMAGES = 2  # per batch
_FROZEN_MAPS, _FROZEN_STRIDE = 2, 4
_MIN_DEVIATION = 0.01  # of offsets; a class whose only windows are its objects has a deviation of 0
_NORM_IMAGES, _NORM_WINDOWS = 10, 100  # images, and windows of each, that the norm is measured on

Picture = tuple[Float[Tensor, "1 3 _ _"], Float[Tensor, "_ 4"]]
# A process without regions takes part in the step with an empty picture.
_EMPTY: Picture = (torch.zeros(1, 3, 1, 1).expand(1, 3, 224, 224), torch.tensor([[0.0, 0.0, 224.0, 224.0]]))


@dataclass
class Regions:
    """Training targets of the regions of a batch.

    Attributes:
        labels: class labels; the last one is the background.
        offsets: normalized offsets from regions to objects; ignored for background.
    """

    labels: Int[Tensor, " k"]
    offsets: Float[Tensor, "k 4"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class OffsetNorm:
    """Mean and standard deviation of the offsets of each class."""

    mean: Float[Tensor, "c 4"]
    deviation: Float[Tensor, "c 4"]

    @staticmethod
    def measure(windows: Sequence[Windows], classes: int) -> "OffsetNorm":
        """Measure the offsets of all positive windows; a class without any has mean 0 and deviation 1."""
        labels = torch.cat([part.labels[positives(part)] for part in windows])
        offsets = torch.cat([encode(part.boxes[positives(part)], part.targets[positives(part)]) for part in windows])
        mean, deviation = torch.zeros(classes, 4), torch.ones(classes, 4)
        for label in labels.unique().tolist():
            of_class = offsets[labels == label].double()
            mean[label] = of_class.mean(0).float()
            deviation[label] = of_class.std(0, correction=0).clamp(min=_MIN_DEVIATION).float()
        return OffsetNorm(mean, deviation)

    def apply(self, offsets: Float[Tensor, "k 4"], labels: Int[Tensor, " k"]) -> Float[Tensor, "k 4"]:
        """Normalize offsets for training."""
        return (offsets - self.mean[labels]) / self.deviation[labels]

    def undo(self, layer: nn.Linear) -> None:
        """Change a layer that predicts normalized offsets into one that predicts plain offsets."""
        deviation = self.deviation.flatten().to(layer.weight)
        with torch.no_grad():
            layer.weight.mul_(deviation[:, None])
            layer.bias.mul_(deviation).add_(self.mean.flatten().to(layer.bias))

    def redo(self, layer: nn.Linear) -> None:
        """Change a layer that predicts plain offsets into one that predicts normalized offsets."""
        deviation = self.deviation.flatten().to(layer.weight)
        with torch.no_grad():
            layer.weight.div_(deviation[:, None])
            layer.bias.sub_(self.mean.flatten().to(layer.bias)).div_(deviation)


class FastNetwork(nn.Module):
    """Detector in training, from images with boxes to logits and normalized offsets.

    The images of a batch keep their sizes and pass through the backbone one at a time: padding them to a common size
    would cost more and change the cells at their borders. With frozen batch norms, images do not affect each other.
    The head processes the boxes of all images at once.
    """

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> "FastNetwork":
        """Set the mode of the head; the encoder stays in evaluation mode, so batch norms keep their statistics."""
        super().train(mode)
        self.model.encoder.eval()
        return self

    def forward(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor | None]:
        """Compute logits (K, classes + 1) and offsets (K, classes, 4) of the boxes of all images.

        Args:
            pictures: normalized pixels of each image, and its boxes as xyxy edges in these pixels.
        """
        output: tuple[Tensor, Tensor | None] = self.model(torch.cat([self._pool(*picture) for picture in pictures]))
        return output

    def _pool(self, pixels: Tensor, boxes: Tensor) -> Tensor:
        encoder = cast(RegionEncoder, self.model.encoder)
        features = encoder.backbone(pixels.to(memory_format=torch.channels_last))
        vertical, horizontal = features.stride
        return region_pyramid_pool(
            features.data,
            [boxes],
            encoder.levels,
            (1 / vertical, 1 / horizontal),
            encoder.rule,
            offset=features.offset,
            reduce=encoder.reduce,
        )


class RegionBatches:
    """Batches of two images with 64 regions each, a quarter of them positive.

    Regions that overlap an object by 0.5 or more are positive and have its label; 0.1 to 0.5 is background. An image
    with too few regions contributes fewer, one with none is skipped. Each epoch visits every image once, mirrored
    with probability 0.5 and at a random scale; the draws depend only on seed, epoch and image.

    Args:
        encoder: encoder that defines how images are resized and normalized.
        windows: windows of each image.
        background: label of the background.
        norm: normalization of the offsets.
        options: regions per batch, mirroring and seed.
        fabric: Lightning Fabric; each of its processes gets its share of the images of a batch. None for a single
            process.
    """

    def __init__(
        self,
        encoder: RegionEncoder,
        windows: Sequence[Windows],
        background: int,
        norm: OffsetNorm,
        options: DetectOptions,
        fabric: Any = None,
    ) -> None:
        self.rank: int = fabric.global_rank if fabric else 0
        self.world: int = fabric.world_size if fabric else 1
        self.encoder, self.background, self.norm = encoder, background, norm
        self.total, self.mirror, self.seed = max(options.batch // _IMAGES, 1), options.mirror, options.seed
        self.windows = [part for part in windows if len(self._draw(part, random.Random(0)))]  # noqa: S311
        self.steps = -(-len(self.windows) // _IMAGES)

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[list[Picture], Regions, list[ImageError]]]:
        """Yield the batches of an epoch, beginning with batch `start`."""
        order = list(range(len(self.windows)))
        random.Random(f"order {self.seed} {epoch}").shuffle(order)  # noqa: S311
        for step in range(start, self.steps):
            pictures: list[Picture] = []
            parts, failures = [Regions(torch.empty(0, dtype=torch.long), torch.empty(0, 4))], []
            for number in order[step * _IMAGES : (step + 1) * _IMAGES][self.rank :: self.world]:
                try:
                    picture, regions = self.example(number, epoch)
                except ImageError as error:
                    failures.append(error)
                else:
                    pictures.append(picture)
                    parts.append(regions)
            labels, offsets = (torch.cat([getattr(part, name) for part in parts]) for name in ("labels", "offsets"))
            yield pictures or [_EMPTY], Regions(labels, offsets), failures

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        """Return None: images keep their sizes."""
        return None

    def example(self, number: int, epoch: int) -> tuple[Picture, Regions]:
        """Return an image with its random regions for an epoch.

        Raises:
            sppnet.ImageError: the image cannot be read.
        """
        rng = random.Random(f"regions {self.seed} {epoch} {number}")  # noqa: S311
        windows = self.windows[number]
        rows = self._draw(windows, rng)
        scale = rng.choice(self.encoder.scales)
        image = load_image(windows.path)
        boxes, targets, nearest = windows.boxes[rows], windows.targets[rows], windows.labels[rows]
        if self.mirror and rng.random() < 0.5:
            image, boxes, targets = ImageOps.mirror(image), mirror(boxes, image.width), mirror(targets, image.width)
        height, width = self.encoder.network_size((image.height, image.width), scale)
        factors = torch.tensor([width / image.width, height / image.height]).repeat(2)
        pixels = self.encoder.pixels(image, (height, width))
        labels = torch.where(positives(windows)[rows], nearest, self.background)
        return (pixels, boxes * factors), Regions(labels, self.norm.apply(encode(boxes, targets), nearest))

    def _draw(self, windows: Windows, rng: random.Random) -> Int[Tensor, " n"]:
        return draw_windows(windows, round(self.total * POSITIVE_SHARE), self.total, rng, far=False)


def multi_task_loss(output: tuple[Tensor, Tensor | None], regions: Regions, smoothing: float = 0) -> tuple[Tensor, int]:
    """Compute Fast R-CNN's loss, and the number of regions that are classified correctly.

    The loss is the mean cross entropy, plus the smooth L1 distance of the true class's offsets for positive regions.
    """
    logits, offsets = output
    loss, labels = F.cross_entropy(logits, regions.labels, label_smoothing=smoothing), regions.labels
    if offsets is not None:
        positive = (labels < offsets.shape[1]).nonzero()[:, 0]
        distance = F.smooth_l1_loss(offsets[positive, labels[positive]], regions.offsets[positive], reduction="sum")
        loss = loss + distance / len(labels)
    return loss, int((logits.argmax(1) == labels).sum())


def freeze(backbone: Backbone) -> None:
    """Freeze the stem, the first stage and all batch norms.

    The first stage ends with the second feature map, or with the last map of stride 4 or less if that comes first,
    which corresponds to the layers that Fast R-CNN freezes in VGG-16. In the paper's networks only conv1 is frozen.
    """
    network: Any = backbone.network
    if backbone.name in PAPER_NETS:
        last = "conv1"
    else:
        maps = [info for info in network.feature_info[:_FROZEN_MAPS] if info["reduction"] <= _FROZEN_STRIDE]
        last = maps[-1]["module"] if maps else ""
    early = set(modules_until(backbone, last))
    for module in network.modules():
        if module in early or isinstance(module, _BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def fit_fast(
    model: Detector,
    windows: Sequence[Windows],
    options: DetectOptions,
    out: Path,
    failures: list[ImageError],
    *,
    initialized: bool = False,
    fabric: Any = None,
) -> bool:
    """Train a detector with its backbone, from the checkpoint in `out` if there is one.

    Args:
        model: detector with a softmax.
        windows: windows of the training images.
        options: training options.
        out: folder for checkpoints and metrics.
        failures: errors of unreadable images; extended with those found in training.
        initialized: whether the model has the weights of another run; otherwise its head is initialized.
        fabric: see :func:`sppnet.training.loop.fit`.

    Returns:
        False if the training was interrupted.

    Raises:
        ValueError: no readable image has an object, or the detector is not a Fast R-CNN.
    """
    encoder, classes = model.encoder, len(model.config.classes)
    if not isinstance(encoder, RegionEncoder) or model.config.scorer != "softmax":
        raise ValueError(f"model: expected a Fast R-CNN with a softmax, got method {model.config.method!r}")
    usable = [windows[number] for number in usable_images(windows, failures)]
    norm = OffsetNorm.measure(usable, classes)
    freeze(encoder.backbone)
    if not initialized:
        initialize_head(model, options.seed)
        model.norm.fill_(mean_square_scale(_sample_vectors(encoder, usable)))
    elif isinstance(model.offsets, nn.Linear):
        norm.redo(model.offsets)
    batches = RegionBatches(encoder, usable, classes, norm, options, fabric)
    loss = partial(multi_task_loss, smoothing=options.label_smoothing)
    finished = fit(FastNetwork(model), batches, options, out, lambda: None, failures, loss, fabric=fabric)
    if finished and isinstance(model.offsets, nn.Linear):
        norm.undo(model.offsets)
    return finished


def initialize_head(model: Detector, seed: int) -> None:
    """Initialize the layers after the pooling."""
    torch.manual_seed(seed)
    model.fc.load_state_dict(create_fc(model.encoder.length, model.config.hidden).state_dict())
    for layer, deviation in ((model.score, 0.01), (model.offsets, 0.001)):
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)


def _sample_vectors(encoder: RegionEncoder, windows: Sequence[Windows]) -> Iterator[Float[Tensor, "_ d"]]:
    """Yield vectors of some windows of the first images."""
    for part in windows[:_NORM_IMAGES]:
        try:
            image = load_image(part.path)
        except ImageError:  # reported in training
            continue
        rows = spread_rows(len(part.boxes), _NORM_WINDOWS)
        with torch.inference_mode():
            vectors = encoder.vectors(encoder.prepare(image), part.boxes[rows])
        yield vectors
