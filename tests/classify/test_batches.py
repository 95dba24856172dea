"""Training batches at native sizes: whole padded images, limits on pixels, and rejected networks and images."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sppnet.backbones.backbone import Backbone, create_backbone
from sppnet.backbones.padded.ledger import PaddingError
from sppnet.classify.batches import ImageBatches
from sppnet.classify.options import ClassifyOptions
from sppnet.classify.train import train_classifier
from sppnet.data.formats.classification import read_classification
from sppnet.data.images import load_image, to_tensor
from sppnet.data.loader import Padded
from tests.helpers.images import write_classes

TINY = ClassifyOptions(
    train_stages="all", sizes="native", epochs=1, batch=4, levels=(1,), backbone="test_resnet", weights="none"
)
SINGLE_PROCESS = SimpleNamespace(global_rank=0, world_size=1, rank_zero_first=lambda: torch.no_grad())


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("test_resnet", None, "none")


def batches_of(
    data: Path, backbone: Backbone, options: ClassifyOptions, rank: int = 0, world: int = 1
) -> list[tuple[Padded, torch.Tensor]]:
    fabric = SimpleNamespace(**{**vars(SINGLE_PROCESS), "global_rank": rank, "world_size": world})
    samples = read_classification(data).samples
    batches = ImageBatches(samples, backbone, options, data.parent / "sizes.json", fabric)
    collected = []
    for x, y, failures in batches.epoch(0, 0):
        assert isinstance(x, Padded)
        assert not failures
        collected.append((x, y))
    assert len(collected) == batches.steps
    return collected


def test_images_are_whole_and_possibly_mirrored(tmp_path: Path, backbone: Backbone) -> None:
    data = write_classes(tmp_path / "data", 3)
    originals = [
        to_tensor(load_image(sample.path), backbone.mean, backbone.std) for sample in read_classification(data).samples
    ]
    indices = []
    for x, labels in batches_of(data, backbone, TINY):
        assert x.images.is_contiguous(memory_format=torch.channels_last)
        assert x.images.shape[2:] == tuple(map(max, zip(*x.sizes, strict=True)))
        for padded, (height, width), label in zip(x.images, x.sizes, labels.tolist(), strict=True):
            image = padded[:, :height, :width]
            equal = [torch.equal(image, original) or torch.equal(image.flip(2), original) for original in originals]
            assert equal.count(True) == 1
            assert equal.index(True) // 3 == label
            indices.append(equal.index(True))
            assert padded.count_nonzero() == image.count_nonzero(), "padding must be zero"
    assert sorted(indices) == list(range(9))


def test_training_logs_the_share_of_padding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sppnet")
    data = write_classes(tmp_path / "data", 3)
    train_classifier(data, tmp_path / "run", replace(TINY, batch=9))
    sizes = [load_image(path).size for path in data.rglob("*.png")]
    max_width, max_height = (max(size[axis] for size in sizes) for axis in (0, 1))
    share = 100 * (1 - sum(width * height for width, height in sizes) / (9 * max_width * max_height))
    text = f"9 images at native size in 1 batches per epoch; {share:.1f} % of the pixels are padding"
    assert text in caplog.messages


def test_images_above_max_pixels_are_shrunk(tmp_path: Path, backbone: Backbone) -> None:
    data = write_classes(tmp_path / "data", 3)
    sizes = [size for x, _ in batches_of(data, backbone, replace(TINY, max_pixels=2500)) for size in x.sizes]
    assert max(height * width for height, width in sizes) <= 2500
    assert len(set(sizes)) > 3


def test_batch_pixels_limits_the_padded_batch(tmp_path: Path, backbone: Backbone) -> None:
    data = write_classes(tmp_path / "data", 3)
    bounded = batches_of(data, backbone, replace(TINY, max_pixels=8100, batch_pixels=12_000))
    assert len(bounded) > 3
    assert sum(len(labels) for _, labels in bounded) == 9
    assert all(math.prod(x.images.shape) / 3 <= 12_000 for x, _ in bounded)
    text = r"batch_pixels: expected at least max_pixels \(8100\) and native sizes, got 8000 with sizes native"
    with pytest.raises(ValueError, match=text):
        replace(TINY, max_pixels=8100, batch_pixels=8000)
    with pytest.raises(ValueError, match="and native sizes, got 2000000 with sizes 224"):
        ClassifyOptions(batch_pixels=2_000_000)


def test_two_processes_share_the_images_of_each_batch(tmp_path: Path, backbone: Backbone) -> None:
    data = write_classes(tmp_path / "data", 3)
    whole = batches_of(data, backbone, TINY)
    parts = [batches_of(data, backbone, TINY, rank, 2) for rank in (0, 1)]
    for (x, y), (x0, y0), (x1, y1) in zip(whole, *parts, strict=True):
        assert sorted(x0.sizes + x1.sizes) == sorted(x.sizes)
        assert sorted(y0.tolist() + y1.tolist()) == sorted(y.tolist())
    # With one image per batch, the second process gets an image without a label, as it must take part in the step.
    unlabeled = batches_of(data, backbone, replace(TINY, batch=1), rank=1, world=2)
    assert all(len(x.images) == 1 and len(y) == 0 for x, y in unlabeled)


def test_rejects_network_without_padding_support_before_writing_files(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", 2)
    options = replace(TINY, backbone="resnest14d")
    text = r"does not support images of different sizes .* \(SplitAttn\).*for example with sizes 180,224 or 180-224"
    with pytest.raises(PaddingError, match=text):
        train_classifier(data, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("batch", "skipped"), [(1, 1), (3, 0)])
def test_image_of_one_cell_is_skipped_if_it_would_be_alone_in_a_batch(batch: int, skipped: int, tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", 2)
    Image.new("RGB", (1, 1)).save(data / "red" / "dot.png")
    training = train_classifier(data, tmp_path / "run", replace(TINY, batch=batch))
    assert training.finished
    assert [Path(failure.path).name for failure in training.failures] == ["dot.png"] * skipped
    assert all("1 x 1 pixels give a map of one cell" in failure.reason for failure in training.failures)


def test_images_too_small_for_the_network_are_skipped_and_reported(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", 2)
    Image.new("RGB", (30, 20)).save(data / "red" / "small.png")
    options = replace(TINY, backbone="zf5", batch=3)
    training = train_classifier(data, tmp_path / "run", options)
    assert training.finished
    (failure,) = training.failures
    assert failure.path.endswith("small.png")
    assert failure.reason.startswith("20 x 30 pixels is too small for zf5, which needs at least")
    assert set(json.loads((tmp_path / "run" / "cache" / "sizes.json").read_text())["sizes"]) == {
        str(path) for path in data.rglob("*.png")
    }
