"""Calibration of a trained classifier: probabilities that match its accuracy, and the threshold of unknown images."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from sppnet.backbones.modes import evaluation_mode
from sppnet.classify.model import Classifier
from sppnet.classify.predict import image_vectors, map_batches, read_image
from sppnet.data.formats.classification import Sample
from sppnet.errors import ImageError
from sppnet.evaluation.calibration import apply_temperature, best_threshold, fit_temperature
from sppnet.progress import track

_BATCH = 32


def calibrate(model: Classifier, logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> None:
    """Divide the logits by the best temperature, in the last layer, and set the threshold of unknown images.

    The temperature does not change which classes are predicted.

    Args:
        model: trained classifier.
        logits: its logits for samples that it was not trained on; without samples, the model stays as it is.
        labels: class indices of these samples.
    """
    if not len(labels):
        return
    temperature = fit_temperature(logits, labels)
    *_, last = (layer for layer in model.head.modules() if isinstance(layer, nn.Linear))
    apply_temperature(last.parameters(), temperature)
    model.config = replace(model.config, threshold=unknown_threshold(logits / temperature, labels))


def calibrate_on_images(model: Classifier, samples: Sequence[Sample]) -> None:
    """Calibrate a classifier on images that it was not trained on; images that cannot be used are skipped."""

    def load(sample: Sample) -> Image.Image | None:
        try:
            return read_image(model, sample.path, model.resize).image
        except ImageError:
            return None

    def run(images: list[Image.Image | None]) -> list[Tensor | None]:
        usable = [image for image in images if image is not None]
        logits = iter(model.head(image_vectors(model, usable)).float().cpu() if usable else ())
        return [None if image is None else next(logits) for image in images]

    batches = map_batches(load, run, samples, model.device, _BATCH)
    with evaluation_mode(model), closing(batches) as results:
        pairs = zip(samples, track(results, "calibrating", len(samples)), strict=True)
        used = [(logits, sample.label) for sample, logits in pairs if logits is not None]
    if used:
        calibrate(model, torch.stack([logits for logits, _ in used]), torch.tensor([label for _, label in used]))


def unknown_threshold(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float | None:
    """Return the probability below which an image is reported as unknown.

    It has the highest F1 of accepting images, for as many images of unknown classes as of known ones. An unknown class
    is imitated by removing the class of an image from the logits. With two classes, where a single one would remain,
    only wrong predictions are to be rejected.
    """
    scores, predicted = logits.softmax(1).max(1)
    correct, images = predicted == labels, len(labels)
    if logits.shape[1] > 2:
        unknown = logits.scatter(1, labels[:, None], -torch.inf).softmax(1).amax(1)
        scores, correct = torch.cat((scores, unknown)), torch.cat((correct, torch.zeros_like(correct)))
    else:
        images = int(correct.sum())
    return best_threshold(scores, correct, images)
