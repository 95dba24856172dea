"""Tests of fitting a detector on window vectors: proposals, norm, SVMs and box regression."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sppnet import Detector, DetectorConfig, RegionEncoder
from sppnet.backbones.backbone import create_backbone
from sppnet.data.formats.detection import read_detection
from sppnet.detect.classic.fit import fit_offsets, fit_svms, propose_windows, vector_norm, window_vectors
from sppnet.detect.classic.rcnn import CropEncoder
from sppnet.detect.classic.windows import CropVectors, MapVectors, Windows
from sppnet.detect.options import DetectOptions
from sppnet.ops.boxes import decode, encode
from tests.helpers.detection_data import CLASSES, write_voc


class FixedVectors(MapVectors):
    """Vectors from one matrix per image."""

    def __init__(self, windows: Sequence[Windows], tables: Sequence[Tensor]) -> None:
        self.windows, self.tables, self.length = windows, tables, tables[0].shape[1]

    def vectors(self, image: int, rows: Tensor, mirrored: bool = False) -> Tensor:  # noqa: ARG002
        return self.tables[image][rows]


@pytest.fixture
def windows(tmp_path: Path) -> list[Windows]:
    """Return the grid windows of images with discs and squares; the first image has no objects."""
    samples = read_detection(write_voc(tmp_path / "data", 6, 1), "train", CLASSES).samples
    options = DetectOptions(proposals="grid", windows=200)
    labeled, failures = propose_windows(samples, 2, options, tmp_path / "cache")
    assert not failures
    return labeled


def detector(method: str = "spp") -> Detector:
    config = DetectorConfig(CLASSES, method, backbone="zf5", levels=(1,), scales=(64,), regression="pool")  # type: ignore[arg-type]
    return Detector(config, create_backbone("zf5"))


def test_proposes_windows_and_reports_unreadable_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = read_detection(write_voc(tmp_path / "data", 3, 1), "train", CLASSES).samples
    samples[0].path.write_bytes(b"not an image")
    options = DetectOptions(proposals="grid", windows=50)
    with caplog.at_level(logging.INFO):
        windows, failures = propose_windows(samples, 2, options, tmp_path / "cache")
    assert [failure.path for failure in failures] == [str(samples[0].path)]
    assert [part.path for part in windows] == [sample.path for sample in samples[1:]]
    assert [part.objects for part in windows] == [len(sample.boxes) for sample in samples[1:]]
    assert "proposals per image; recall at an overlap of 0.5: " in caplog.text


def test_vectors_come_from_maps_or_from_crops(tmp_path: Path) -> None:
    spp, rcnn = detector(), detector("rcnn")
    assert isinstance(spp.encoder, RegionEncoder)
    assert isinstance(rcnn.encoder, CropEncoder)
    assert isinstance(window_vectors(spp, [], tmp_path), MapVectors)
    assert isinstance(window_vectors(rcnn, [], tmp_path), CropVectors)


def test_norm_scales_vectors_to_unit_mean_square(windows: list[Windows]) -> None:
    tables = [torch.randn(len(part.boxes), 5) * 7 for part in windows[:2]]
    vectors = FixedVectors(windows[:2], tables)
    rows = [torch.linspace(0, len(table) - 1, min(len(table), 100)).long() for table in tables]
    used = torch.cat([table[row] for table, row in zip(tables, rows, strict=True)])
    assert (vector_norm(vectors, [0, 1]) * used).square().mean().item() == pytest.approx(1, rel=1e-4)


def test_svms_separate_the_classes(windows: list[Windows]) -> None:
    """The vectors are the overlaps with the nearest object of each class, padded to the detector's length."""
    tables = [nn.functional.pad(part.others, (0, 254)) for part in windows]
    vectors, model = FixedVectors(windows, tables), detector()
    model.norm.fill_(0.5)
    fit_svms(model, vectors, range(len(windows)), 0)
    with torch.inference_mode():
        for part, table in zip(windows, tables, strict=True):
            scores, _ = model(table[: part.objects])
            assert torch.equal(scores.argmax(1), part.labels[: part.objects])


def test_regression_moves_windows_towards_their_objects(windows: list[Windows]) -> None:
    """The vectors are the true offsets, so that the regression can be exact up to its penalty."""
    tables = [nn.functional.pad(encode(part.boxes, part.targets), (0, 252)) for part in windows]
    vectors, model = FixedVectors(windows, tables), detector()
    model.norm.fill_(0.5)
    fit_offsets(model, vectors, range(len(windows)), 0)
    before, after = [], []
    for part, table in zip(windows, tables, strict=True):
        rows = (part.overlap >= 0.5) & (part.overlap < 0.9)
        _, offsets = model(table[rows])
        assert offsets is not None
        chosen = offsets[torch.arange(len(offsets)), part.labels[rows]]
        before.append((part.boxes[rows] - part.targets[rows]).abs())
        after.append((decode(part.boxes[rows], chosen.detach()) - part.targets[rows]).abs())
    assert torch.cat(after).mean() < 0.5 * torch.cat(before).mean()
