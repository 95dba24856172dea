"""Calibration of a trained segmenter: probabilities that match the share of correct pixels."""

from contextlib import closing
from operator import attrgetter

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.data.formats.masks import IGNORE, SegmentationSample, load_pair
from sppnet.data.formats.segmentation import SegmentationData
from sppnet.errors import ImageError
from sppnet.evaluation.calibration import Subsample, apply_temperature, fit_temperature
from sppnet.progress import track
from sppnet.segment.network import SegmenterNetwork
from sppnet.segment.options import View
from sppnet.segment.views import map_images

_PIXELS, _STEP = 50_000, 16


def calibrate(model: SegmenterNetwork, data: SegmentationData, layers: tuple[str, ...]) -> None:
    """Divide the logits by the best temperature, in the last layers, which does not change the class of any pixel.

    Args:
        model: trained segmenter.
        data: images and masks that it was not trained on, of which up to 50,000 evenly spaced pixels are used, at most
            every 16th; images and masks that cannot be used are skipped.
        layers: prefixes of the names of the layers whose outputs are logits.
    """

    def load(sample: SegmentationSample, _view: View) -> tuple[Image.Image, np.ndarray] | None:
        try:
            return load_pair(sample, data.labels)
        except ImageError:
            return None

    def run(pair: tuple[Image.Image, np.ndarray] | None, _view: View) -> Float[Tensor, "k _"] | None:
        if pair is None:
            return None
        labels = torch.as_tensor(pair[1]).long().flatten()
        chosen = (labels != IGNORE).nonzero()[::_STEP, 0]
        with torch.inference_mode():
            logits = model(model.pixels(pair[0]))[0].flatten(1).float().cpu()
        return torch.cat((logits[:, chosen], labels[None, chosen])).T

    pixels = Subsample(_PIXELS)
    with closing(map_images(model, load, run, data.samples, attrgetter("path"), View())) as results:
        for part in track(results, "calibrating", len(data.samples)):
            if part is not None:
                pixels.add(part)
    rows = pixels.rows()
    if rows is not None:
        temperature = fit_temperature(rows[:, :-1], rows[:, -1].long())
        apply_temperature((weight for name, weight in model.named_parameters() if name.startswith(layers)), temperature)
