"""A detector fitted roughly to the shapes of `write_voc`, and images for it."""

from pathlib import Path
from typing import Any

import torch

from sppnet import Detector, DetectorConfig
from sppnet.backbones.backbone import create_backbone
from sppnet.data.formats.detection import DetectionData, read_detection
from sppnet.data.images import load_image
from sppnet.detect.proposals import Proposals
from sppnet.ops.boxes import overlaps
from tests.helpers.detection_data import CLASSES, write_voc


def annotated_images(root: Path, count: int = 8) -> DetectionData:
    return read_detection(write_voc(root, count, 1), "train", CLASSES)


def noisy_detector(data: DetectionData, **options: Any) -> Detector:
    """Return a detector whose scores follow the overlap of the windows of `data` with an object of the class."""
    torch.manual_seed(0)
    config = DetectorConfig(
        CLASSES, backbone="zf5", levels=(2, 1), scales=(96,), proposals="grid", windows=200, **options
    )
    model = Detector(config, create_backbone("zf5", weights=None))
    x, y = [], []
    for sample, found in zip(data.samples, model.propose([sample.path for sample in data.samples]), strict=True):
        assert isinstance(found, Proposals)
        prepared = model.encoder.prepare(load_image(sample.path))
        distinct = model.encoder.distinct(prepared, found.boxes.float())  # type: ignore[arg-type]
        x.append(distinct.data[distinct.index])
        shared = overlaps(found.boxes.float(), sample.boxes)
        of_class = [shared * (sample.labels == label) for label in range(len(CLASSES))]
        y.append(torch.stack([part.amax(1) if part.numel() else torch.zeros(len(part)) for part in of_class], 1))
    with torch.no_grad():
        vectors, targets = torch.cat(x).double(), 4 * torch.cat(y).double() - 2
        mean = vectors.mean(0)
        ridge = (vectors - mean).T @ (vectors - mean) + len(vectors) * torch.eye(len(mean))
        weight = torch.linalg.solve(ridge, (vectors - mean).T @ targets).T.float()
        model.score.weight[: len(CLASSES)] = weight
        model.score.bias[: len(CLASSES)] = -weight @ mean.float() - 0.5
    return model
