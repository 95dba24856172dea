import dataclasses
import math
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from sppnet import Backbone, create_backbone
from sppnet.data.formats.masks import IGNORE, LabelMap, SegmentationSample, load_mask
from sppnet.data.formats.segmentation import SegmentationData, read_segmentation
from sppnet.data.images import load_image, to_tensor
from sppnet.segment.batches import MaskBatches, crop_mask, draw_crop, largest_share
from sppnet.training.loop import Batches
from tests.helpers.segmentation_data import save_mask, write_shapes

SIZE = (40, 48)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("test_resnet", weights=None)


@pytest.fixture
def shapes(tmp_path: Path) -> SegmentationData:
    return read_segmentation(write_shapes(tmp_path / "shapes", images=7), "train")


def single_image_data(path: Path, pixels: np.ndarray, ids: np.ndarray) -> SegmentationData:
    """Write a data set of one image."""
    path.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path / "i.png")
    sample = SegmentationSample(path / "i.png", save_mask(ids, path / "m.png"))
    return SegmentationData(path, (sample,), LabelMap(("a", "b", "c"), {0: 0, 1: 1, 2: 2}), ())


def test_batches_have_the_form_the_training_loop_expects(shapes: SegmentationData, backbone: Backbone) -> None:
    batches = MaskBatches(shapes, backbone, SIZE, batch=3, seed=0, workers=0)
    assert isinstance(batches, Batches)
    assert batches.side(0) is None
    assert MaskBatches(shapes, backbone, (32, 32), 3, 0, 0).side(0) == 32
    epoch = list(batches.epoch(0, 0))
    assert sorted(len(y) for _, y, _ in epoch) == [2, 2, 3]
    assert batches.steps == 3
    for x, y, failures in epoch:
        assert (x.dtype, x.shape[1:]) == (torch.float32, (3, *SIZE))
        assert (y.dtype, y.shape[1:]) == (torch.int64, SIZE)
        assert set(y.unique().tolist()) <= {IGNORE, 0, 1, 2}
        assert failures == []


def test_seed_epoch_and_number_determine_a_batch(shapes: SegmentationData, backbone: Backbone) -> None:
    def batches(seed: int, workers: int = 0) -> MaskBatches:
        return MaskBatches(shapes, backbone, SIZE, 3, seed, workers, jitter=0.3)

    whole = list(batches(5).epoch(2, 0))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    for rest in (batches(5).epoch(2, 1), batches(5, workers=1).epoch(2, 1)):
        for (x, y, _), (repeated_x, repeated_y, _) in zip(whole[1:], rest, strict=True):
            assert torch.equal(x, repeated_x)
            assert torch.equal(y, repeated_y)
    for other in (batches(5).epoch(3, 0), batches(6).epoch(2, 0)):
        assert not any(torch.equal(x, other_x) for (x, _, _), (other_x, _, _) in zip(whole, other, strict=True))


def test_last_batch_may_be_a_single_image(shapes: SegmentationData, backbone: Backbone) -> None:
    three = dataclasses.replace(shapes, samples=shapes.samples[:3])
    assert [len(y) for _, y, _ in MaskBatches(three, backbone, SIZE, 2, 0, 0).epoch(0, 0)] in ([1, 2], [2, 1])


def test_skips_and_reports_unreadable_files(shapes: SegmentationData, backbone: Backbone) -> None:
    Path(str(shapes.samples[0].mask)).unlink()
    shapes.samples[1].path.write_bytes(b"")
    batches = MaskBatches(shapes, backbone, SIZE, 7, 0, 0)
    ((_, y, failures),) = batches.epoch(0, 0)
    assert len(y) == 5
    assert {failure.path for failure in failures} == {str(shapes.samples[0].mask), str(shapes.samples[1].path)}
    unreadable = dataclasses.replace(shapes, samples=shapes.samples[:1])
    ((x, y, failures),) = MaskBatches(unreadable, backbone, SIZE, 7, 0, 0).epoch(0, 0)
    assert (x.shape, y.shape, len(failures)) == ((1, 3, *SIZE), (0, *SIZE), 1)


def test_crop_of_the_whole_image_is_the_image_or_its_mirror(shapes: SegmentationData, backbone: Backbone) -> None:
    batches = MaskBatches(shapes, backbone, (64, 80), 1, 0, 0, scale=(1.0, 1.0))
    expected = [
        (
            to_tensor(load_image(sample.path), backbone.mean, backbone.std),
            torch.from_numpy(load_mask(sample.mask, shapes.labels)).long(),
        )
        for sample in shapes.samples
    ]
    mirrorings = []
    for x, y, _ in batches.epoch(0, 0):
        for image, mask in expected:
            for mirrored in (False, True):
                if torch.equal(x[0], image.flip(2) if mirrored else image):
                    assert torch.equal(y[0], mask.flip(1) if mirrored else mask)
                    mirrorings.append(mirrored)
    assert len(mirrorings) == len(expected)
    assert set(mirrorings) == {False, True}


def test_pads_images_smaller_than_the_crop(tmp_path: Path, backbone: Backbone) -> None:
    data = single_image_data(tmp_path, np.full((20, 30, 3), 255, np.uint8), np.full((20, 30), 2, np.uint8))
    corners = set()
    for epoch in range(8):
        batches = MaskBatches(data, backbone, SIZE, 1, 0, 0, scale=(0.5, 0.5), jitter=0.5)
        ((x, y, _),) = batches.epoch(epoch, 0)
        rows, columns = (y[0] != IGNORE).nonzero(as_tuple=True)
        assert len(rows) == 10 * 15
        assert (int(rows.max() - rows.min()), int(columns.max() - columns.min())) == (9, 14)
        assert (x[0] == 0).all(0).equal(y[0] == IGNORE)  # the mean color, not jittered
        corners.add((int(rows.min()), int(columns.min())))
    assert len(corners) > 4


@settings(max_examples=25, deadline=None)
@example(1138, 1.71875, 17.0, True)
@given(st.integers(0, 10_000), st.floats(0.3, 2.0), st.floats(14, 30), st.booleans())
def test_image_and_mask_stay_aligned(
    tmp_path_factory: pytest.TempPathFactory, backbone: Backbone, seed: int, factor: float, radius: float, disc: bool
) -> None:
    """Pixels are white where the mask is 1, up to an image pixel at edges; outside the crop, both are allowed."""
    rows, columns = np.mgrid[:70, :90]
    down, right = np.abs(rows - 33.3), np.abs(columns - 41.7)
    inside = (np.hypot(down, right) if disc else np.maximum(down, right)) <= radius
    pixels = np.repeat(inside[..., None] * np.uint8(255), 3, axis=2)
    data = single_image_data(tmp_path_factory.mktemp("aligned"), pixels, inside.astype(np.uint8))
    ((x, y, _),) = MaskBatches(data, backbone, SIZE, 1, seed, 0, scale=(factor, factor), most=1.0).epoch(0, 0)
    rgb = torch.tensor(backbone.std) * x[0].permute(1, 2, 0) + torch.tensor(backbone.mean)
    white = rgb[..., 0] > 0.5
    shape = (y == 1).float()
    pixel = math.ceil(factor)
    padding = (pixel,) * 4
    dilated = F.max_pool2d(F.pad(shape, padding, value=1.0), 2 * pixel + 1, 1)[0] > 0
    eroded = F.max_pool2d(F.pad((y == 0).float(), padding, value=1.0), 2 * pixel + 1, 1)[0] == 0
    labeled = y[0] != IGNORE
    assert not (white & ~dilated & labeled).any()
    assert not (eroded & shape[0].bool() & ~white).any()


@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.floats(0.1, 4.0),
)
def test_crop_is_inside_the_image_and_has_its_scale(
    seed: int, image: tuple[int, int], size: tuple[int, int], factor: float
) -> None:
    crop = draw_crop(random.Random(seed), image, size, (factor, factor))
    x1, y1, x2, y2 = crop.box
    assert 0 <= y1 < y2 <= image[0]
    assert 0 <= x1 < x2 <= image[1]
    for low, high, length, original, side, start in (
        (y1, y2, crop.size[0], image[0], size[0], crop.top),
        (x1, x2, crop.size[1], image[1], size[1], crop.left),
    ):
        scaled = max(round(original * factor), 1)
        assert length == min(scaled, side)
        assert 0 <= start <= side - length
        assert length / (high - low) == pytest.approx(scaled / original)


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 60), st.floats(0.2, 3.0))
def test_cropped_mask_has_the_ids_at_pixel_centers(seed: int, h: int, w: int, factor: float) -> None:
    mask = np.arange(h * w, dtype=np.int16).reshape(h, w)
    crop = draw_crop(random.Random(seed), (h, w), (17, 13), (factor, factor))
    cropped = crop_mask(mask, crop)
    assert cropped.shape == crop.size
    x1, y1, x2, y2 = crop.box
    for row in range(crop.size[0]):
        for column in range(crop.size[1]):
            y, x = divmod(int(cropped[row, column]), w)
            assert y - 1e-9 <= y1 + (row + 0.5) * (y2 - y1) / crop.size[0] <= y + 1 + 1e-9
            assert x - 1e-9 <= x1 + (column + 0.5) * (x2 - x1) / crop.size[1] <= x + 1 + 1e-9


def test_draws_scales_and_positions_from_their_whole_range() -> None:
    rng = random.Random(0)
    crops = [draw_crop(rng, (100, 200), (50, 60), (0.5, 2.0)) for _ in range(400)]
    factors = sorted(60 / (crop.box[2] - crop.box[0]) for crop in crops)
    assert factors[0] < 0.52
    assert factors[-1] > 1.98
    assert factors[200] == pytest.approx(1.25, abs=0.1)
    positions = sorted(crop.box[0] / (200 - crop.box[2] + crop.box[0]) for crop in crops)
    assert max(after - before for before, after in pairwise(positions)) < 0.05
    assert positions[0] < 0.05 < 0.95 < positions[-1]


def test_redraws_crops_dominated_by_one_class(tmp_path: Path, backbone: Backbone) -> None:
    ids = np.zeros((80, 80), np.uint8)
    ids[:, 60:] = 1
    data = single_image_data(tmp_path, np.zeros((80, 80, 3), np.uint8), ids)

    def count_mixed(most: float) -> int:
        shares = []
        for epoch in range(40):
            batches = MaskBatches(data, backbone, (32, 32), 1, 0, 0, scale=(1.0, 1.0), most=most)
            ((_, y, _),) = batches.epoch(epoch, 0)
            shares.append(largest_share(y[0].numpy().astype(np.int16)))
        return sum(share <= 0.76 for share in shares)

    assert count_mixed(1.0) < 20
    assert count_mixed(0.75) > 32


def test_largest_share_excludes_ignored_pixels() -> None:
    assert largest_share(np.array([[IGNORE, IGNORE, 0, 2, 2]], np.int16)) == pytest.approx(2 / 3)
    assert largest_share(np.full((2, 2), IGNORE, np.int16)) == 1.0


def test_jitter_changes_colors_but_not_masks(shapes: SegmentationData, backbone: Backbone) -> None:
    plain = next(MaskBatches(shapes, backbone, SIZE, 7, 0, 0).epoch(0, 0))
    jittered = next(MaskBatches(shapes, backbone, SIZE, 7, 0, 0, jitter=0.4).epoch(0, 0))
    assert torch.equal(plain[1], jittered[1])
    differences = (jittered[0] - plain[0]).abs().amax((1, 2, 3))
    assert (differences > 0.02).all()
    assert len(differences.unique()) > 4
