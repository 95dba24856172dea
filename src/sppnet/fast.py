"""Training of Fast R-CNN: the convolutions, the fc layers, the softmax and the box offsets together."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from sppnet.boxes import encode, mirror
from sppnet.console import track
from sppnet.data.images import ImageError, load_image, to_tensor
from sppnet.detect import Detector
from sppnet.detect_options import DetectOptions
from sppnet.encoder import ImageMaps, RegionEncoder
from sppnet.finetune import POSITIVE_SHARE, draw_windows, positives
from sppnet.loop import fit
from sppnet.windows import Windows

_IMAGES = 2  # a batch (section 2.3); its windows are shared out between them
_FROZEN = 0.4  # of the network's parameters, counted from the image on, stay as they are: edges and colours
_SPREAD_WINDOWS = 200
_NORM_IMAGES = 10

Pair = tuple[tuple[int, int], Tensor, Tensor]


def fit_fast(
    model: Detector, windows: Sequence[Windows], options: DetectOptions, out: Path, failures: list[ImageError]
) -> bool:
    """Train a detector of the method ``fast`` (Fast R-CNN, section 2).

    A batch has 2 images and 128 windows, a quarter of them on objects. The loss is the cross entropy plus the smooth L1
    loss of the true class's offsets on objects, these being centred and scaled to a deviation of 1 for the training.
    The first layers and all batch norms stay as they are.

    Args:
        model: is trained in place.
        windows: of the training images.
        options: of the training.
        out: for checkpoints.
        failures: images that cannot be read are added here.

    Returns:
        False where it was interrupted; the checkpoint then has everything that was done.
    """
    if not isinstance(model.encoder, RegionEncoder) or model.offsets is None:
        raise ValueError("method: Fast R-CNN has regions and offsets; got a detector without")
    windows = _with_objects_first(windows)
    mean, spread = offset_statistics(windows)
    model.norm.fill_(_norm(model.encoder, windows, failures))
    network = FastNetwork(model)
    batches = ImagePairs(model.encoder, windows, len(model.config.classes), mean, spread, options)
    finished = fit(network, batches, options, out, lambda: None, failures, multi_task_loss)
    model.cpu().eval().requires_grad_(True)
    if finished:
        undo_scaling(model.offsets, mean, spread)  # type: ignore[arg-type]
    return finished


class FastNetwork(nn.Module):
    """A detector in training: images and windows in, logits and offsets out."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model
        freeze_first_layers(model.encoder.backbone)

    def forward(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Logits and offsets of the windows of all images.

        Args:
            pairs: for each image its (height, width), what the network sees of it, (1, 3, H, W), and windows in pixels
                of the image. The images have sizes of their own and so passes of their own: padding one to the other's
                size would change what its border cells see.
        """
        encoder: RegionEncoder = self.model.encoder  # type: ignore[assignment]
        rows = []
        for size, pixels, boxes in pairs:
            maps = ImageMaps(size, ((pixels.shape[2], pixels.shape[3]),), (encoder.backbone(pixels),))
            rows.append(encoder.vectors(maps, boxes))
        logits, offsets = self.model(torch.cat(rows))
        return logits, offsets

    def train(self, mode: bool = True) -> "FastNetwork":
        """Train mode for dropout only: statistics of two images are worse than those of ImageNet."""
        super().train(mode)
        self.model.encoder.eval()
        return self


class ImagePairs:
    """Batches of two images with 64 windows each; batch k of epoch e is the same each time.

    Args:
        encoder: gives images their sizes; of several scales one is drawn for each image.
        windows: of each image.
        background: label of the background.
        mean, spread: of the offsets, see :func:`offset_statistics`.
        options: windows a batch, whether images are mirrored, and the seed.
    """

    def __init__(
        self, encoder: RegionEncoder, windows: Sequence[Windows], background: int, mean: Tensor, spread: Tensor,
        options: DetectOptions,
    ) -> None:  # fmt: skip
        self.encoder, self.windows, self.background = encoder, list(windows), background
        self.mean, self.spread = mean, spread
        self.each, self.seed, self.mirror = max(options.batch // _IMAGES, 1), options.seed, options.mirror
        self.steps = -(-len(self.windows) // _IMAGES)

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Any, Tensor, list[ImageError]]]:
        """The batches of an epoch from the one numbered `start` on."""
        order = list(range(len(self.windows)))
        random.Random(f"order {self.seed} {epoch}").shuffle(order)  # noqa: S311
        for step in range(start, self.steps):
            pairs, targets, bad = [], [], []
            for image in order[step * _IMAGES : (step + 1) * _IMAGES]:
                rng = random.Random(f"image {self.seed} {epoch} {image}")  # noqa: S311
                try:
                    pair, target = self._draw(self.windows[image], rng)
                except ImageError as error:
                    bad.append(error)
                    continue
                pairs.append(pair)
                targets.append(target)
            yield pairs, torch.cat(targets) if targets else torch.empty(0, 5), bad

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        """Images have sizes of their own."""
        return None

    def _draw(self, windows: Windows, rng: random.Random) -> tuple[Pair, Tensor]:
        """The image and windows of it, and for each window its label and scaled offsets."""
        image = load_image(windows.path)
        rows = draw_windows(windows, round(self.each * POSITIVE_SHARE), self.each, rng)
        boxes, goals = windows.boxes[rows], windows.targets[rows]
        labels = torch.where(positives(windows)[rows], windows.labels[rows], self.background)
        if self.mirror and rng.random() < 0.5:
            boxes, goals, image = mirror(boxes, image.width), mirror(goals, image.width), ImageOps.mirror(image)
        size = (image.height, image.width)
        network_size = self.encoder.network_size(size, rng.choice(self.encoder.scales))
        pixels = self._pixels(image, network_size)
        offsets = torch.zeros(len(rows), 4)
        on = labels != self.background
        offsets[on] = (encode(boxes[on], goals[on]) - self.mean) / self.spread
        return (size, pixels, boxes), torch.cat((labels[:, None].float(), offsets), dim=1)

    def _pixels(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        backbone = self.encoder.backbone
        resized = image.resize((size[1], size[0]), Image.Resampling[backbone.interpolation.upper()])
        x = to_tensor(resized, backbone.mean, backbone.std)[None]
        return x.to(memory_format=torch.channels_last)


def multi_task_loss(output: tuple[Tensor, Tensor], target: Tensor) -> tuple[Tensor, int]:
    """Cross entropy, plus smooth L1 on the offsets of the true class, over the number of windows (section 2.3).

    Args:
        output: logits (K, classes + 1) with the background last, and offsets (K, classes, 4).
        target: (K, 5), the label and the offsets.

    Returns:
        The loss, and how many labels are right.
    """
    logits, offsets = output
    labels = target[:, 0].long()
    on = labels < offsets.shape[1]
    moved = F.smooth_l1_loss(offsets[on, labels[on]], target[on, 1:], reduction="sum") / max(len(labels), 1)
    return F.cross_entropy(logits, labels) + moved, int((logits.argmax(1) == labels).sum())


def offset_statistics(windows: Sequence[Windows]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the offsets of all windows on objects."""
    parts = []
    for one in windows:
        rows = positives(one).nonzero()[:_SPREAD_WINDOWS, 0]
        parts.append(encode(one.boxes[rows], one.targets[rows]))
    offsets = torch.cat(parts)
    return offsets.mean(0), offsets.std(0, unbiased=False).clamp(min=1e-3)


def undo_scaling(layer: nn.Linear, mean: Tensor, spread: Tensor) -> None:
    """Turn a layer that gives centred and scaled offsets into one that gives plain ones."""
    classes = layer.out_features // 4
    with torch.no_grad():
        layer.weight.mul_(spread.repeat(classes)[:, None])
        layer.bias.mul_(spread.repeat(classes)).add_(mean.repeat(classes))


def freeze_first_layers(backbone: nn.Module) -> None:
    """Leave untrained the first two fifths of the layers with weights, and all batch norms."""
    layers = [layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers[: round(_FROZEN * len(layers))]:
        layer.requires_grad_(False)
    for part in backbone.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.requires_grad_(False)


def _with_objects_first(windows: Sequence[Windows]) -> list[Windows]:
    """The images that have windows on objects: the others would be batches of background only."""
    kept = [one for one in windows if one.objects]
    if not kept:
        raise ValueError("data: no image that can be read has an object")
    return kept


def _norm(encoder: RegionEncoder, windows: Sequence[Windows], failures: list[ImageError]) -> float:
    """What scales vectors to unit mean square before anything is trained."""
    squares = []
    with torch.inference_mode():
        for one in track(windows[:_NORM_IMAGES], "norm of the vectors", min(len(windows), _NORM_IMAGES)):
            try:
                maps = encoder.prepare(load_image(one.path))
            except ImageError as error:
                failures.append(error)
                continue
            squares.append(encoder.vectors(maps, one.boxes[:_SPREAD_WINDOWS]).square().mean())
    if not squares:
        raise ValueError(f"data: the first {_NORM_IMAGES} images cannot be read; the first is {failures[0]}")
    return float(1 / torch.stack(squares).mean().sqrt().clamp(min=1e-12))
