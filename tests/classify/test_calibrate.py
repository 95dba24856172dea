"""Calibration of classifiers: equal predictions, smaller errors, and the threshold of unknown images."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sppnet.classify.calibrate import calibrate, calibrate_on_images, unknown_threshold
from sppnet.classify.evaluate import evaluate_classifier
from sppnet.data.formats.classification import Sample, read_classification
from sppnet.evaluation.calibration import calibration_error
from tests.helpers.classifiers import build_classifier
from tests.helpers.images import write_classes


def scored(count: int = 3000, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Return vectors, and labels drawn from the softmax of their first entries."""
    vectors = 3 * torch.randn(count, 64)
    return vectors, vectors[:, :classes].softmax(1).multinomial(1)[:, 0]


@pytest.mark.parametrize("head", ["linear", "plain", "fc"])
def test_only_the_scale_of_the_logits_changes(head: str) -> None:
    model = build_classifier(levels=(1,), head=head)
    vectors = torch.randn(500, model.backbone.channels)
    with torch.no_grad():
        before = 50 * model.head(vectors)
        calibrate(model, before / 50, before.argmax(1))
        after = model.head(vectors)
    factor = (after / before).median()
    assert factor != 1 / 50
    torch.testing.assert_close(after, before * factor, rtol=1e-3, atol=1e-3)
    assert (after.argmax(1) == before.argmax(1)).all()


def test_probabilities_match_the_accuracy() -> None:
    model = build_classifier(levels=(1,), head="plain")
    model.head = nn.Linear(64, 3)
    with torch.no_grad():
        model.head.weight.copy_(4 * torch.eye(3, 64))
        model.head.bias.zero_()
    vectors, labels = scored()
    errors = []
    for _ in range(2):
        with torch.no_grad():
            scores, predicted = model.head(vectors[1500:]).softmax(1).max(1)
            errors.append(calibration_error(scores, predicted == labels[1500:]))
            calibrate(model, model.head(vectors[:1500]), labels[:1500])
    assert errors[0] > 0.1
    assert errors[1] < 0.04
    threshold = model.config.threshold
    assert threshold is not None
    assert 1 / 3 < threshold < 1


def test_threshold_separates_known_images_from_those_without_their_class() -> None:
    logits = torch.full((40, 4), 0.0)
    labels = torch.arange(4).repeat(10)
    logits[torch.arange(40), labels] = 6
    known = float(logits[0].softmax(0).max())  # without its class, an image has a score of 1/3
    assert unknown_threshold(logits, labels) == pytest.approx((known + 1 / 3) / 2)
    # Two classes: only the wrong predictions are rejected.
    logits, labels = torch.tensor([[5.0, 0], [0, 4], [1, 0]]), torch.tensor([0, 1, 1])
    scores = logits.softmax(1).amax(1)
    assert scores[2] < (unknown_threshold(logits, labels) or 0) < scores[1]
    assert unknown_threshold(logits, 1 - labels) != unknown_threshold(logits, labels)


def test_images_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    data = read_classification(write_classes(tmp_path / "data", 3))
    model, expected = (build_classifier(classes=data.classes, levels=(1,)) for _ in range(2))
    samples = (*data.samples, Sample(tmp_path / "gone.png", 0))
    before = evaluate_classifier(model, data)
    calibrate_on_images(model, samples)
    calibrate_on_images(expected, data.samples)
    torch.testing.assert_close(model.head.state_dict(), expected.head.state_dict())
    after = evaluate_classifier(model, data)
    assert [image.predicted for image in after.images] == [image.predicted for image in before.images]
    assert after.ece <= before.ece + 0.02
    assert [image.score for image in after.images] != [image.score for image in before.images]


def test_without_samples_the_model_stays_as_it_is() -> None:
    model, untouched = build_classifier(), build_classifier()
    calibrate_on_images(model, [])
    torch.testing.assert_close(model.state_dict(), untouched.state_dict())
    assert model.config.threshold is None
