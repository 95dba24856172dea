"""Fast R-CNN: the convolutions and the head trained together, on the regions of two images a batch (Girshick, 2015)."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from sppnet.data.images import load_image
from sppnet.detect.classic.finetune import POSITIVE_SHARE, draw_windows, positives
from sppnet.detect.classic.windows import Windows, usable_images
from sppnet.detect.model import Detector, create_fc
from sppnet.detect.options import DetectOptions
from sppnet.errors import ImageError
from sppnet.features.encoder import RegionEncoder
from sppnet.ops.boxes import encode, mirror
from sppnet.ops.regions import region_pyramid_pool
from sppnet.training.loop import fit

_IMAGES = 2  # of a batch
_FROZEN_MAPS, _FROZEN_STRIDE = 2, 4
_LEAST_DEVIATION = 0.01  # of offsets: a class whose windows are its objects alone has none
_NORM_IMAGES, _NORM_WINDOWS = 10, 100

Picture = tuple[Float[Tensor, "1 3 _ _"], Float[Tensor, "_ 4"]]


@dataclass
class Regions:
    """What the regions of a batch are to become.

    Attributes:
        labels: classes; the background has the last one.
        offsets: normalised, from region to object; no part where the region is background.
    """

    labels: Int[Tensor, " k"]
    offsets: Float[Tensor, "k 4"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class OffsetNorm:
    """Mean and deviation of each class's offsets."""

    mean: Float[Tensor, "c 4"]
    deviation: Float[Tensor, "c 4"]

    @staticmethod
    def measure(windows: Sequence[Windows], classes: int) -> "OffsetNorm":
        """Those of all windows on objects; a class without any has mean 0 and deviation 1."""
        labels = torch.cat([one.labels[positives(one)] for one in windows])
        offsets = torch.cat([encode(one.boxes[positives(one)], one.targets[positives(one)]) for one in windows])
        mean, deviation = torch.zeros(classes, 4), torch.ones(classes, 4)
        for label in labels.unique().tolist():
            mine = offsets[labels == label].double()
            mean[label] = mine.mean(0).float()
            deviation[label] = mine.std(0, correction=0).clamp(min=_LEAST_DEVIATION).float()
        return OffsetNorm(mean, deviation)

    def apply(self, offsets: Float[Tensor, "k 4"], labels: Int[Tensor, " k"]) -> Float[Tensor, "k 4"]:
        """Offsets as the box head learns them."""
        return (offsets - self.mean[labels]) / self.deviation[labels]

    def undo(self, layer: nn.Linear) -> None:
        """Turn a layer that gives normalised offsets into one that gives plain ones."""
        deviation = self.deviation.flatten().to(layer.weight)
        with torch.no_grad():
            layer.weight.mul_(deviation[:, None])
            layer.bias.mul_(deviation).add_(self.mean.flatten().to(layer.bias))


class FastNetwork(nn.Module):
    """A detector while it is trained: images with boxes in, logits and normalised offsets out.

    The images of a batch have sizes of their own, and each passes the backbone by itself: padded to one size they
    would cost more, and cells at their borders would see what they do not see in prediction. With batch norms that
    stay as they are, nothing else ties images together. All boxes pass the head at once.
    """

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> "FastNetwork":
        """Set the head's mode; the backbone's batch norms keep their statistics."""
        super().train(mode)
        self.model.encoder.eval()
        return self

    def forward(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor | None]:
        """Logits (K, classes + 1) and offsets (K, classes, 4) of all images' boxes.

        Args:
            pictures: normalised pixels of an image, and its boxes: xyxy edges in these pixels.
        """
        output: tuple[Tensor, Tensor | None] = self.model(torch.cat([self._pool(*one) for one in pictures]))
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
    """Batches of two images with 64 regions each, a quarter of them on objects.

    A region is positive from an overlap of 0.5 on, with the label of that object, and background from 0.1 to 0.5; an
    image that has fewer gives fewer. An epoch takes every image once, those apart that have no such region. Each is
    mirrored by the toss of a coin and seen at one of the scales; what is drawn depends on seed, epoch and image alone.

    Args:
        encoder: says how images are resized and normalised.
        windows: of each image.
        background: label of the background.
        norm: of the offsets.
        options: regions a batch, whether images are mirrored, and the seed.
    """

    def __init__(
        self,
        encoder: RegionEncoder,
        windows: Sequence[Windows],
        background: int,
        norm: OffsetNorm,
        options: DetectOptions,
    ) -> None:
        self.encoder, self.background, self.norm = encoder, background, norm
        self.total, self.mirror, self.seed = max(options.batch // _IMAGES, 1), options.mirror, options.seed
        self.windows = [one for one in windows if len(self._draw(one, random.Random(0)))]  # noqa: S311
        self.steps = -(-len(self.windows) // _IMAGES)

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[list[Picture], Regions, list[ImageError]]]:
        """The batches of an epoch from the one numbered `start` on."""
        order = list(range(len(self.windows)))
        random.Random(f"order {self.seed} {epoch}").shuffle(order)  # noqa: S311
        for step in range(start, self.steps):
            pictures: list[Picture] = []
            parts, failures = [Regions(torch.empty(0, dtype=torch.long), torch.empty(0, 4))], []
            for number in order[step * _IMAGES : (step + 1) * _IMAGES]:
                try:
                    picture, regions = self.example(number, epoch)
                except ImageError as error:
                    failures.append(error)
                else:
                    pictures.append(picture)
                    parts.append(regions)
            labels, offsets = (torch.cat([getattr(part, name) for part in parts]) for name in ("labels", "offsets"))
            yield pictures, Regions(labels, offsets), failures

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        """Images have sizes of their own."""
        return None

    def example(self, number: int, epoch: int) -> tuple[Picture, Regions]:
        """An image as an epoch shows it, and its regions.

        Raises:
            sppnet.ImageError: it cannot be read.
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


def multi_task(output: tuple[Tensor, Tensor | None], regions: Regions) -> tuple[Tensor, int]:
    """Fast R-CNN's loss, the mean over the regions: cross entropy, and for those on objects the smooth L1 distance of
    the four offsets of the true class.
    """
    logits, offsets = output
    loss, labels = F.cross_entropy(logits, regions.labels), regions.labels
    if offsets is not None:
        on = (labels < offsets.shape[1]).nonzero()[:, 0]
        distance = F.smooth_l1_loss(offsets[on, labels[on]], regions.offsets[on], reduction="sum")
        loss = loss + distance / len(labels)
    return loss, int((logits.argmax(1) == labels).sum())


def freeze(backbone: Backbone) -> None:
    """Exempt the stem and the first stage from training, and all batch norms.

    The first stage ends with the second feature map, or with the last one of stride 4 or less if that comes first: the
    layers that Fast R-CNN leaves as they are in VGG-16. The paper's networks keep conv1.
    """
    network: Any = backbone.network
    if backbone.name in PAPER_NETS:
        last = "conv1"
    else:
        maps = [one for one in network.feature_info[:_FROZEN_MAPS] if one["reduction"] <= _FROZEN_STRIDE]
        last = maps[-1]["module"] if maps else ""
    # timm's networks list their modules in the order in which they run.
    names = [name for name, _ in network.named_modules()]
    ends = [number for number, name in enumerate(names) if name == last or name.startswith(f"{last}.")]
    early = set(names[: ends[-1] + 1]) if last and ends else set()
    for name, module in network.named_modules():
        if name in early or isinstance(module, _BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def fit_fast(
    model: Detector, windows: Sequence[Windows], options: DetectOptions, out: Path, failures: list[ImageError]
) -> bool:
    """Train a detector with its convolutions, from the checkpoint in `out` if there is one.

    Args:
        model: with a softmax; its head is drawn anew.
        windows: of the training images.
        options: how.
        out: for checkpoints and metrics.
        failures: images that could not be read; those that training meets are added.

    Returns:
        False where the training was interrupted.

    Raises:
        ValueError: no image with an object can be read.
    """
    encoder, classes = model.encoder, len(model.config.classes)
    if not isinstance(encoder, RegionEncoder) or model.config.scorer != "softmax":
        raise ValueError(f"model: expected Fast R-CNN's, with a softmax; got method {model.config.method!r}")
    usable = [windows[number] for number in usable_images(windows, failures)]
    norm = OffsetNorm.measure(usable, classes)
    freeze(encoder.backbone)
    _draw_head(model, options.seed)
    model.norm.fill_(_vector_norm(encoder, usable))
    batches = RegionBatches(encoder, usable, classes, norm, options)
    finished = fit(FastNetwork(model), batches, options, out, lambda: None, failures, multi_task)
    if finished and isinstance(model.offsets, nn.Linear):
        norm.undo(model.offsets)
    return finished


def _draw_head(model: Detector, seed: int) -> None:
    torch.manual_seed(seed)
    model.fc.load_state_dict(create_fc(model.encoder.length, model.config.hidden).state_dict())
    for layer, deviation in ((model.score, 0.01), (model.offsets, 0.001)):
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)


def _vector_norm(encoder: RegionEncoder, windows: Sequence[Windows]) -> float:
    """What scales the first images' vectors to unit mean square, so that one learning rate suits all backbones."""
    squares = []
    for one in windows[:_NORM_IMAGES]:
        try:
            image = load_image(one.path)
        except ImageError:  # told when its turn comes
            continue
        rows = torch.linspace(0, len(one.boxes) - 1, min(len(one.boxes), _NORM_WINDOWS)).long()
        with torch.inference_mode():
            squares.append(encoder.vectors(encoder.prepare(image), one.boxes[rows]).float().square().mean(1))
    mean = float(torch.cat(squares).mean()) if squares else 0.0
    return 1 / math.sqrt(mean) if mean else 1.0
