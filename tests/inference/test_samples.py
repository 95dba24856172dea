"""Picture of samples with labels, boxes and masks."""

from pathlib import Path

import numpy as np
from PIL import Image

from sppnet.data.check.items import Entry
from sppnet.data.formats.masks import LabelMap
from sppnet.data.items import Box, Item
from sppnet.inference.samples import SIDE, draw_samples
from tests.helpers.segmentation_data import save_mask

GRAY = (100, 100, 100)


def write_image(path: Path) -> Path:
    Image.new("RGB", (SIDE, SIDE), GRAY).save(path)
    return path


def test_draws_up_to_the_given_number_of_images(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{number}.png") for number in range(9)]
    paths[0].write_bytes(b"damaged")
    entries = [Entry(path, labels=("cat",)) for path in paths]
    one, two = (draw_samples(entries[1 : 1 + count]) for count in (1, 2))
    assert two.width > 2 * one.width
    assert draw_samples(entries, 6).size == draw_samples(entries[1:], 5).size
    assert draw_samples([]).size


def test_draws_boxes_and_masks_but_no_ignored_pixels(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    ids = np.zeros((SIDE, SIDE), np.uint8)
    ids[:, 100:] = 1
    ids[:, 200:] = 255
    save_mask(ids, tmp_path / "mask.png")
    labels = LabelMap(("background", "tree"), {0: 0, 1: 1})
    box = Box("cat", (20, 40, 60, 80), False, "object 1")
    items = {"voc": Item(path, boxes=(box,)), "voc-masks": Item(path, mask=tmp_path / "mask.png")}
    pixels = np.asarray(draw_samples([Entry(path, items=items, label_map=labels)]))
    assert tuple(pixels[120, 50]) == GRAY
    assert tuple(pixels[120, 150]) != GRAY
    assert tuple(pixels[120, 220]) == GRAY
    assert tuple(pixels[60, 20]) != GRAY
    assert tuple(pixels[60, 40]) == GRAY


def test_skips_images_whose_mask_cannot_be_used(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    save_mask(np.full((SIDE, SIDE), 9, np.uint8), tmp_path / "mask.png")
    entry = Entry(path, items={"voc-masks": Item(path, mask=tmp_path / "mask.png")}, label_map=LabelMap(("a",), {0: 0}))
    assert draw_samples([entry]).size == draw_samples([]).size
