"""Batches of images with objects."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sppnet.data.formats.detection import DetectionSample, read_detection
from sppnet.detect.two_stage.batches import Batch, ObjectBatches
from sppnet.errors import ImageError
from sppnet.ops.boxes import mirror
from tests.helpers.annotation_files import write_image
from tests.helpers.detection_data import CLASSES, write_voc
from tests.helpers.two_stage import tiny_detector


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[DetectionSample, ...]:
    data = write_voc(tmp_path_factory.mktemp("voc") / "data", 5, 1)
    return read_detection(data, "train", CLASSES).samples


def read(path: Path, mirrored: bool) -> list[Tensor]:
    """Return maps of one channel, of which the finer one has the number of the image, or minus it if mirrored."""
    number = float(path.stem.removeprefix("train")) + 1
    return [torch.full((1, 8, 10), -number if mirrored else number), torch.ones(1, 4, 5)]


def batches(samples: tuple[DetectionSample, ...], batch: int = 2, seed: int = 0) -> ObjectBatches:
    return ObjectBatches(tiny_detector(), samples, read, batch, seed)


def numbers(batch: Batch) -> list[int]:
    return [int(value) for value in batch.maps[0][:, 0, 0, 0].tolist()]


def test_objects_are_scaled_and_mirrored_with_the_maps(samples: tuple[DetectionSample, ...]) -> None:
    mirrored = 0
    for batch, objects, failures in batches(samples).epoch(0, 0):
        assert not failures
        assert len(objects) == len(batch.sizes)
        for number, size, found in zip(numbers(batch), batch.sizes, objects, strict=True):
            sample = samples[abs(number) - 1]
            assert size == (64, 75)  # of 96 x 112
            boxes = sample.boxes * torch.tensor([75 / 112, 64 / 96] * 2)
            torch.testing.assert_close(found.boxes, mirror(boxes, 75) if number < 0 else boxes)
            assert torch.equal(found.labels, sample.labels)
            mirrored += number < 0
    assert 25 < mirrored < 60  # of 85 images


def test_epoch_of_few_images_passes_them_several_times(samples: tuple[DetectionSample, ...]) -> None:
    small = batches(samples)
    epoch = [numbers(batch) for batch, _, _ in small.epoch(0, 0)]
    assert len(epoch) == small.steps == 51  # 17 passes of 3 batches, which are at least 50
    counts = torch.tensor([abs(number) for batch in epoch for number in batch]).bincount()
    assert counts.tolist() == [0, *[17] * 5]
    assert len({tuple(batch) for batch in epoch}) > 20
    assert batches(samples * 40, batch=1).steps == 200


def test_batches_depend_on_seed_and_epoch_only(samples: tuple[DetectionSample, ...]) -> None:
    first, second = batches(samples), batches(samples)
    epoch = [numbers(batch) for batch, _, _ in first.epoch(3, 0)]
    assert [numbers(batch) for batch, _, _ in second.epoch(3, 45)] == epoch[45:]
    assert [numbers(batch) for batch, _, _ in first.epoch(4, 0)] != epoch
    assert [numbers(batch) for batch, _, _ in batches(samples, seed=1).epoch(3, 0)] != epoch


def test_images_of_different_sizes_are_padded_at_the_bottom_and_right(tmp_path: Path) -> None:
    samples = []
    for number, (width, height) in enumerate([(96, 64), (64, 64)]):
        write_image(tmp_path / f"train{number}.png", width, height)
        none = torch.zeros(0)
        samples.append(DetectionSample(tmp_path / f"train{number}.png", none.reshape(0, 4), none.long(), none.bool()))

    def read(path: Path, mirrored: bool) -> list[Tensor]:
        columns = 12 if path.stem == "train0" else 8
        return [torch.ones(3, 8, columns), torch.ones(2, 4, columns // 2)]

    for batch, objects, _ in ObjectBatches(tiny_detector(), samples, read, 2, 0).epoch(0, 49):
        assert [data.shape for data in batch.maps] == [(2, 3, 8, 12), (2, 2, 4, 6)]
        narrow = batch.sizes.index((64, 64))
        assert [float(data[narrow].sum()) for data in batch.maps] == [3 * 8 * 8, 2 * 4 * 4]
        assert not batch.maps[0][narrow, :, :, 8:].any()
        assert [len(found.boxes) for found in objects] == [0, 0]


def test_unreadable_images_are_returned_as_errors(samples: tuple[DetectionSample, ...]) -> None:
    def refuse(path: Path, mirrored: bool) -> list[Tensor]:
        if path.stem == "train1":
            raise ImageError(str(path), "damaged")
        return read(path, mirrored)

    found = list(ObjectBatches(tiny_detector(), samples, refuse, 1, 0).epoch(0, 45))
    assert [len(objects) + len(failures) for _, objects, failures in found] == [1] * 5
    assert [failure.path for _, _, failures in found for failure in failures] == [str(samples[1].path)]


def test_processes_share_the_images_of_each_batch(samples: tuple[DetectionSample, ...]) -> None:
    shares = []
    for rank in (0, 1):
        part = batches(samples, batch=4)
        part.rank, part.world = rank, 2
        shares.append([numbers(batch) for batch, _, _ in part.epoch(1, 0)])
    whole = [sorted(numbers(batch)) for batch, _, _ in batches(samples, batch=4).epoch(1, 0)]
    assert [sorted(first + second) for first, second in zip(*shares, strict=True)] == whole
