"""Pictures of the cells and bins that boxes cover."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet import RegionEncoder
from sppnet.features.pictures import draw_regions


def test_panel_is_dark_outside_the_cells_and_tinted_inside(encoder: RegionEncoder) -> None:
    image = Image.new("RGB", (200, 100), (200, 200, 200))
    box = torch.tensor([[60.0, 30, 140, 70]])
    sheet = np.asarray(draw_regions(encoder, image, box, ["a"])).astype(int)
    panel = sheet[-340:-10, 10:330]
    tinted = (panel[:, :, 0] - panel[:, :, 2] > 40) & (panel[:, :, 1] > 90)
    dark = (panel == 70).all(2)
    assert 0.03 < tinted.mean() < 0.5
    assert 0.02 < dark.mean() < 0.6
    rows, columns = tinted.nonzero()
    left, top, right, bottom = encoder.cells(box[0], (100, 200)).cells
    # The tinted area has the aspect ratio of the cells, up to the untinted bins at its border.
    aspect_ratio = (rows.max() - rows.min()) / (columns.max() - columns.min())
    assert aspect_ratio == pytest.approx((bottom - top) / (right - left), rel=0.35)
    assert (np.asarray(image) == 200).all()


@pytest.mark.parametrize("rule", ["paper", "roi_pool"])
def test_draws_boxes_across_the_border_and_arbitrary_names(rule: Any) -> None:
    encoder = RegionEncoder("zf5", ((2, 3), 1), (100, 150), rule=rule)
    image = Image.new("RGB", (90, 60))
    boxes = torch.tensor([[-500.0, -9, 600, 70], [89, 59, 89.5, 60], [0, 0, 1, 60], [5, 5, 6, 6], [80, 1, 4000, 50]])
    names = ["", "x" * 500, "ümläut \U0001f600", "d", "e"]
    sheet = draw_regions(encoder, image, boxes, names)
    assert draw_regions(encoder, image, boxes.repeat(9, 1), names * 9).size == sheet.size
    assert draw_regions(encoder, image, boxes[:0], []).size[1] < sheet.size[1]
    with pytest.raises(ValueError, match="names: expected one for each of the 5 boxes, got 4"):
        draw_regions(encoder, image, boxes, names[:4])
