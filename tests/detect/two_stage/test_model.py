"""Prediction with a two-stage detector."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sppnet
from sppnet import Failure, ImageError, Tiling
from sppnet.detect.two_stage.model import TwoStageDetector
from sppnet.detect.two_stage.network import Candidates
from sppnet.detect.two_stage.regions import decay_duplicates
from sppnet.training.run import save
from tests.helpers.two_stage import tiny_detector


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model() -> TwoStageDetector:
    torch.manual_seed(0)
    return tiny_detector(windows=30)


def test_prediction_does_not_depend_on_other_images(model: TwoStageDetector) -> None:
    images = [photograph(70, 50), photograph(40, 90, 1), photograph(64, 64, 2)]
    together = model.predict(images, min_score=0)
    for image, result in zip(images, together, strict=True):
        (single,) = model.predict(image, min_score=0)
        assert isinstance(result, sppnet.DetectionResult)
        assert isinstance(single, sppnet.DetectionResult)
        assert single.to_dict() | {"source": result.source} == result.to_dict()
        assert result.to_dict()["objects"]
        assert result.size == (image.height, image.width)
        assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)
        edges = torch.tensor([image.width, image.height] * 2)
        for boxes in (result.boxes, result.proposals):
            assert boxes.min() >= 0
            assert (boxes <= edges + 1e-3).all()
        assert len(result.proposals) <= 30


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3000, 2)])
@pytest.mark.parametrize("tiling", [None, Tiling(64)])
def test_tiny_images_have_a_result(model: TwoStageDetector, size: tuple[int, int], tiling: Tiling | None) -> None:
    (result,) = model.predict(photograph(*size), min_score=0, vectors=True, tiling=tiling)
    assert isinstance(result, sppnet.DetectionResult)
    assert result.boxes.isfinite().all()
    assert result.vectors is not None
    assert len(result.vectors) == len(result.boxes)


@pytest.mark.slow
@pytest.mark.parametrize("tiling", [None, Tiling(6000, 0)])
def test_images_of_144_million_pixels_have_a_result(
    model: TwoStageDetector, tiling: Tiling | None, tmp_path: Path
) -> None:
    Image.new("RGB", (12_000, 12_000), (90, 120, 40)).save(tmp_path / "large.png", compress_level=1)
    (result,) = model.predict(tmp_path / "large.png", min_score=0, tiling=tiling)
    assert isinstance(result, sppnet.DetectionResult)
    assert result.size == (12_000, 12_000)
    assert len(result.boxes)
    assert result.boxes.max() <= 12_000


def test_vectors_are_the_pyramids_of_the_detected_boxes(model: TwoStageDetector) -> None:
    image = photograph(64, 64)  # has the size of the network's input
    (result,) = model.predict(image, min_score=0, vectors=True)
    assert isinstance(result, sppnet.DetectionResult)
    with torch.inference_mode():
        _, fine, coarse = (data.float() for data in model.maps(model.prepare(image)))
        parts = [
            sppnet.region_pyramid_pool(fine, [result.boxes], (2, 1), 1 / 16, "roi_pool"),
            sppnet.region_pyramid_pool(coarse, [result.boxes], (3, 2, 1), 1 / 32, "roi_pool"),
        ]
        expected = torch.cat(parts, 1)
    assert result.vectors is not None
    assert result.vectors.shape == (len(result.boxes), 192 * 5 + 96 * 14)
    torch.testing.assert_close(result.vectors, expected)
    (plain,) = model.predict(image, min_score=0)
    assert isinstance(plain, sppnet.DetectionResult)
    assert plain.vectors is None
    assert torch.equal(plain.boxes, result.boxes)
    (none,) = model.predict(image, min_score=1.1, vectors=True)
    assert isinstance(none, sppnet.DetectionResult)
    assert none.vectors is not None
    assert none.vectors.shape == (0, 192 * 5 + 96 * 14)


def test_tile_as_large_as_the_image_changes_nothing(model: TwoStageDetector) -> None:
    image = photograph(80, 70)
    (whole,), (tiled,) = (model.predict(image, min_score=0, tiling=tiling) for tiling in (None, Tiling(80)))
    assert whole.to_dict() == tiled.to_dict()
    (several,) = model.predict(image, min_score=0, tiling=Tiling(64))
    assert isinstance(several, sppnet.DetectionResult)
    assert isinstance(whole, sppnet.DetectionResult)
    assert len(several.proposals) > len(whole.proposals)


def test_unusable_images_are_failures_or_errors(model: TwoStageDetector, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    first, second = model.predict([bad, photograph(20, 20)], on_error="skip")
    assert isinstance(first, Failure)
    assert first.source == str(bad)
    assert isinstance(second, sppnet.DetectionResult)
    with pytest.raises(ImageError, match=r"bad\.png"):
        model.predict(bad)


@pytest.mark.usefixtures("unchecked")
def test_rejects_unknown_handling_of_errors(model: TwoStageDetector) -> None:
    with pytest.raises(ValueError, match="on_error: expected one of raise, skip, got 'ignore'"):
        model.predict(photograph(20, 20), on_error="ignore")  # type: ignore[arg-type]


def test_model_is_in_the_mode_it_was_in(model: TwoStageDetector) -> None:
    model.train()
    model.predict(photograph(20, 20))
    assert all(module.training for module in model.modules())
    model.eval()


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_detections_have_the_highest_scores_of_their_class(
    model: TwoStageDetector, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    corners = torch.rand(40, 2) * 60
    candidates = Candidates(
        torch.cat((corners, corners + 20 + torch.rand(40, 2) * 20), 1), torch.rand(40, 2).softmax(1), torch.rand(40),
        torch.rand(40), torch.zeros(40, 4),
    )  # fmt: skip
    monkeypatch.setattr(model, "config", replace(model.config, dense_weight=weight))
    found = model.read(candidates)
    rows = []
    for row in range(40):
        objectness = float(candidates.objectness[row]) ** (1 - weight) * float(candidates.dense[row]) ** weight
        rows += [(objectness * float(candidates.classes[row, label]), label, row) for label in (0, 1)]
    rows.sort(reverse=True)
    scores, labels, boxes = (torch.tensor(values) for values in zip(*rows, strict=True))
    decayed, order = decay_duplicates(candidates.boxes[boxes], scores, labels).sort(descending=True)
    order = order[decayed > 1e-3]
    assert (decayed < scores.sort(descending=True).values).any(), "some boxes are duplicates"
    assert torch.equal(found.labels, labels[order])
    torch.testing.assert_close(found.scores, decayed[: len(order)])
    assert torch.equal(found.boxes, candidates.boxes[boxes[order]])


def test_calibrated_scores_are_the_logistic_function_of_the_log_odds(model: TwoStageDetector) -> None:
    image = photograph(64, 64)
    (plain,) = model.predict(image, min_score=0)
    before = model.config
    model.config = replace(before, calibration=(2.0, 1.0))
    (found,) = model.predict(image, min_score=0)
    model.config = before
    assert isinstance(plain, sppnet.DetectionResult)
    assert isinstance(found, sppnet.DetectionResult)
    odds = (plain.scores / (1 - plain.scores)) ** 2 * torch.e
    torch.testing.assert_close(found.scores, odds / (1 + odds))


@pytest.mark.parametrize("backbone", ["test_resnet", "zf5", "test_vit"])
def test_saved_and_loaded_models_predict_the_same(backbone: str, tmp_path: Path) -> None:
    model = tiny_detector(backbone=backbone, levels=((2, 1), 1))
    model.config = replace(model.config, calibration=(1.5, 0.5), threshold=0.25, dense_weight=0.15)
    save(model, tmp_path / "run")
    loaded = sppnet.load(tmp_path / "run")
    assert isinstance(loaded, TwoStageDetector)
    assert loaded.config == model.config
    assert loaded.config.min_score == 0.25
    image = photograph(60, 90)
    (first,), (second,) = model.predict(image, min_score=0), loaded.predict(image, min_score=0)
    assert first.to_dict() == second.to_dict()


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [('"side": 64', '"side": "64"', "side"), ('"windows"', '"window"', "window"), ("two-stage", "three", "three")],
)
def test_illegal_configurations_of_runs_are_errors(old: str, new: str, text: str, tmp_path: Path) -> None:
    save(tiny_detector(), tmp_path)
    content = (tmp_path / "run.json").read_text()
    assert old in content
    (tmp_path / "run.json").write_text(content.replace(old, new))
    with pytest.raises(ValueError, match=text):
        sppnet.load(tmp_path)
