"""Calibration of segmenters: equal classes of all pixels, and a smaller error."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sppnet.data.formats.segmentation import read_segmentation
from sppnet.segment.calibrate import calibrate
from sppnet.segment.evaluate import evaluate_segmenter
from sppnet.segment.model import Segmenter
from sppnet.segment.train import final_layers
from tests.helpers.segmentation_data import CLASSES
from tests.helpers.tiny_segmenter import HEADS, tiny_segmenter


@pytest.mark.parametrize("options", HEADS)
def test_only_the_scale_of_the_logits_changes(options: dict[str, Any], dataset: Path) -> None:
    data = read_segmentation(dataset, "val", CLASSES)
    model = tiny_segmenter(classes=CLASSES, **options)
    pixels = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        before = model(pixels)
        calibrate(model, data, final_layers(model))
        after = model(pixels)
    factor = (after / before).median()
    assert factor != 1
    torch.testing.assert_close(after, before * factor, rtol=1e-3, atol=1e-3)
    assert (after.argmax(1) == before.argmax(1)).double().mean() > 0.9999


def test_probabilities_match_the_share_of_correct_pixels(
    trained_model: Segmenter, dataset: Path, tmp_path: Path
) -> None:
    """Training has calibrated the model; undo it by a temperature of 1/4. An unreadable mask is skipped."""
    calibrated = evaluate_segmenter(trained_model, dataset)
    root = shutil.copytree(dataset, tmp_path / "data")
    (root / "valannot" / "val_1.png").write_bytes(b"no image")
    layers = final_layers(trained_model)
    before = {name: value.clone() for name, value in trained_model.state_dict().items()}
    try:
        with torch.no_grad():
            for name, parameter in trained_model.named_parameters():
                parameter.mul_(4 if name.startswith(layers) else 1)
        worse = evaluate_segmenter(trained_model, dataset)
        calibrate(trained_model, read_segmentation(root, "val", CLASSES), layers)
        again = evaluate_segmenter(trained_model, dataset)
    finally:
        trained_model.load_state_dict(before)
    assert calibrated.ece is not None
    assert worse.ece is not None
    assert again.ece is not None
    assert max(calibrated.ece, again.ece) < worse.ece
    assert again.ece == pytest.approx(calibrated.ece, abs=0.02)
    assert again.scores.miou == pytest.approx(calibrated.scores.miou, abs=1e-4)
