"""Tests of the windows of training images: labels, and vectors cached on disk."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sppnet import ImageError, RegionEncoder, create_backbone
from sppnet.data.formats.detection import DetectionSample
from sppnet.data.images import load_image
from sppnet.detect.classic.rcnn import CropEncoder
from sppnet.detect.classic.windows import (
    CropVectors,
    MapVectors,
    Windows,
    WindowVectors,
    content_digest,
    label_windows,
    usable_images,
)
from sppnet.features.encoder import ImageMaps
from sppnet.ops.boxes import mirror
from tests.helpers.window_cases import make_windows, noise

Corners = Sequence[tuple[int, int, int, int]]


def boxes_of(corners: Corners) -> Tensor:
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def sample(corners: Corners, labels: Sequence[int], difficult: Sequence[bool]) -> DetectionSample:
    flags = torch.tensor(difficult, dtype=torch.bool)
    return DetectionSample(Path("image.png"), boxes_of(corners), torch.tensor(labels, dtype=torch.long), flags)


def windows_on(path: Path, boxes: Tensor) -> Windows:
    empty = DetectionSample(path, boxes[:0], torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.bool))
    return label_windows(empty, boxes, 2)


def random_boxes(count: int, height: int, width: int) -> Tensor:
    first = torch.rand(count, 2) * torch.tensor([width, height]) * 0.8
    last = first + 2 + torch.rand(count, 2) * (torch.tensor([width, height]) - first - 2)
    return torch.cat((first, last), dim=1)


def test_objects_precede_proposals_and_windows_have_the_label_of_the_nearest_object() -> None:
    objects = sample([(0, 0, 10, 10), (20, 0, 30, 10), (0, 0, 10, 8)], [2, 0, 1], [False] * 3)
    proposals = boxes_of([(0, 0, 10, 5), (20, 0, 30, 20), (50, 50, 60, 60), (25, 0, 35, 10)])
    windows = label_windows(objects, proposals, 4)
    assert windows.path == Path("image.png")
    assert windows.objects == 3
    assert torch.equal(windows.boxes, torch.cat((objects.boxes, proposals)))
    assert windows.labels[:6].tolist() == [2, 0, 1, 1, 0, 2]
    assert windows.labels[6] == 0
    assert windows.overlap.tolist() == pytest.approx([1, 1, 1, 5 / 8, 1 / 2, 0, 1 / 3])
    assert torch.equal(windows.targets[[0, 1, 2, 3, 4, 6]], objects.boxes[[0, 1, 2, 2, 1, 1]])
    expected = [
        [0, 0.8, 1, 0], [1, 0, 0, 0], [0, 1, 0.8, 0], [0, 0.625, 0.5, 0], [0.5, 0, 0, 0], [0, 0, 0, 0],
        [1 / 3, 0, 0, 0],
    ]  # fmt: skip
    torch.testing.assert_close(windows.others, torch.tensor(expected))
    assert windows.counts.all()


def test_difficult_objects_and_windows_on_them_are_not_used() -> None:
    """Proposals overlap the difficult object by 1, 0.31, 0.3 and 0; the last one overlaps the other object more."""
    objects = sample([(0, 0, 100, 100), (0, 80, 100, 180)], [1, 0], [True, False])
    proposals = boxes_of([(0, 0, 100, 100), (0, 0, 100, 31), (0, 0, 100, 30), (300, 0, 310, 10), (0, 40, 100, 150)])
    windows = label_windows(objects, proposals, 2)
    assert windows.objects == 1
    assert torch.equal(windows.boxes[:1], objects.boxes[1:])
    assert windows.counts.tolist() == [True, False, False, True, True, True]
    assert not windows.others[:, 1].any()
    assert not windows.labels.any()
    only_difficult = label_windows(sample([(0, 0, 100, 100)], [1], [True]), proposals, 2)
    assert only_difficult.objects == 0
    assert only_difficult.counts.tolist() == [False, False, True, True, False]
    assert not only_difficult.overlap.any()


def test_image_without_objects_has_only_background() -> None:
    proposals = boxes_of([(0, 0, 5, 5), (1, 2, 3, 4)])
    windows = label_windows(sample([], [], []), proposals, 3)
    assert (windows.objects, windows.others.shape) == (0, (2, 3))
    assert not windows.overlap.any()
    assert not windows.others.any()
    assert windows.counts.all()
    assert windows.labels.tolist() == [0, 0]
    assert torch.equal(windows.targets, proposals)


def test_image_without_proposals_has_its_objects() -> None:
    windows = label_windows(sample([(0, 0, 4, 4)], [1], [False]), torch.empty(0, 4), 2)
    assert (windows.objects, len(windows.boxes), windows.overlap.item()) == (1, 1, 1)
    empty = label_windows(sample([], [], []), torch.empty(0, 4), 2)
    assert (empty.boxes.shape, empty.others.shape) == ((0, 4), (0, 2))


@pytest.fixture(scope="module")
def encoder() -> RegionEncoder:
    return RegionEncoder(levels=(2, 1), scales=(64, 96), max_side=200)


@pytest.fixture(scope="module")
def cropper() -> CropEncoder:
    torch.manual_seed(0)
    return CropEncoder(create_backbone("zf5"), levels=(1,), side=33)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    noise(70, 100).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def vectors_of(encoder: RegionEncoder, image: Image.Image, boxes: Tensor) -> Tensor:
    with torch.inference_mode():
        return encoder.vectors(encoder.prepare(image), boxes)


def test_vectors_of_cached_maps_match_the_encoder(encoder: RegionEncoder, image: Path, tmp_path: Path) -> None:
    """Equal up to half precision; writing and reading the cache gives exactly the same vectors."""
    boxes = random_boxes(50, 70, 100)
    stored = MapVectors(encoder, [windows_on(image, boxes)], tmp_path / "cache")
    rows = torch.tensor([7, 3, 49, 3])
    first = stored.vectors(0, rows)
    assert len(files(tmp_path / "cache")) == 1
    (expected,) = encoder(load_image(image), boxes)
    assert first.shape == (4, stored.length) == (4, encoder.length)
    assert first.dtype == torch.float32
    torch.testing.assert_close(first, expected[rows], rtol=1e-3, atol=1e-4)
    assert torch.equal(stored.vectors(0, rows), first)
    assert stored.vectors(0, rows[:0]).shape == (0, encoder.length)


def test_mirrored_vectors_match_mirrored_image_and_boxes(encoder: RegionEncoder, image: Path, tmp_path: Path) -> None:
    boxes = random_boxes(20, 70, 100)
    stored = MapVectors(encoder, [windows_on(image, boxes)], tmp_path / "cache")
    expected = vectors_of(encoder, ImageOps.mirror(load_image(image)), mirror(boxes, 100))
    vectors = stored.vectors(0, torch.arange(20), mirrored=True)
    torch.testing.assert_close(vectors, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(stored.vectors(0, torch.arange(20), mirrored=True), vectors)
    plain = vectors_of(encoder, load_image(image), boxes)
    assert (vectors - plain).norm() > 0.05 * plain.norm()


def test_maps_are_computed_once(
    encoder: RegionEncoder, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, windows = tmp_path / "cache", windows_on(image, random_boxes(3, 70, 100))
    assert MapVectors(encoder, [windows], cache).compute("features", mirrored=True) == []
    cached = files(cache)
    assert len(cached) == 2
    passes: list[Image.Image] = []
    prepare = RegionEncoder.prepare

    def counted(self: RegionEncoder, picture: Image.Image) -> ImageMaps:
        passes.append(picture)
        return prepare(self, picture)

    monkeypatch.setattr(RegionEncoder, "prepare", counted)
    os.utime(image)
    reopened = MapVectors(encoder, [windows], cache)
    assert reopened.compute("features", mirrored=True) == []
    reopened.vectors(0, torch.tensor([0]), mirrored=True)
    assert files(cache) == cached
    assert not passes
    image.rename(tmp_path / "moved.png")
    moved = MapVectors(encoder, [replace(windows, path=tmp_path / "moved.png")], cache)
    moved.vectors(0, torch.tensor([0]))
    assert not passes


def test_replaced_image_file_is_encoded_again(
    encoder: RegionEncoder, cropper: CropEncoder, image: Path, tmp_path: Path
) -> None:
    boxes, rows = random_boxes(6, 70, 100), torch.arange(6)
    windows = [windows_on(image, boxes)]
    stores: list[WindowVectors] = [MapVectors(encoder, windows, tmp_path / "maps")]
    stores.append(CropVectors(cropper, windows, tmp_path / "crops"))
    before = [store.vectors(0, rows) for store in stores]
    noise(70, 100, seed=1).save(image)
    after = [store.vectors(0, rows) for store in stores]
    torch.testing.assert_close(after[0], vectors_of(encoder, noise(70, 100, seed=1), boxes), rtol=1e-3, atol=1e-4)
    with torch.inference_mode():
        expected = cropper.distinct(noise(70, 100, seed=1), boxes).data
    torch.testing.assert_close(after[1].float(), expected, rtol=1e-3, atol=1e-4)
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_each_encoder_configuration_has_its_own_cache_folder(image: Path, tmp_path: Path) -> None:
    backbone, windows = create_backbone("zf5"), [windows_on(image, random_boxes(3, 70, 100))]
    base = RegionEncoder(backbone, (1,), (64,), 200)
    encoders = [base, RegionEncoder(backbone, (1,), (80,), 200), RegionEncoder(backbone, (1,), (64,), 100)]
    encoders.append(RegionEncoder("zf5", (1,), (64,), 200))
    for encoder in encoders:
        MapVectors(encoder, windows, tmp_path / "cache").compute("features")
    assert len(files(tmp_path / "cache")) == len(list((tmp_path / "cache").iterdir())) == 4
    MapVectors(RegionEncoder(backbone, (3, 2), (64,), 200, "released", "avg"), windows, tmp_path / "cache").compute("")
    assert len(files(tmp_path / "cache")) == 4
    cache = tmp_path / "crops"
    for cropper in (CropEncoder(backbone, (1,), 33), CropEncoder(backbone, (1,), 34), CropEncoder(backbone, (2,), 33)):
        CropVectors(cropper, windows, cache).compute("features")
    assert len(files(cache)) == len(list(cache.iterdir())) == 3


def test_partial_files_of_a_killed_run_are_ignored(
    encoder: RegionEncoder, cropper: CropEncoder, image: Path, tmp_path: Path
) -> None:
    windows, rows = [windows_on(image, random_boxes(4, 70, 100))], torch.arange(4)
    stores: dict[str, WindowVectors] = {
        "maps": MapVectors(encoder, windows, tmp_path / "maps"),
        "crops": CropVectors(cropper, windows, tmp_path / "crops"),
    }
    for name, store in stores.items():
        folder = tmp_path / name
        expected = store.vectors(0, rows)
        (path,) = files(folder)
        path.rename(path.with_name(path.name + ".part")).write_bytes(b"half a file")
        assert torch.equal(store.vectors(0, rows), expected)
        assert store.compute("features") == []
        assert path in [file for file in files(folder) if file.suffix == ".safetensors"]


@pytest.mark.parametrize("kind", ["maps", "crops"])
def test_unreadable_images_are_named(
    kind: str, encoder: RegionEncoder, cropper: CropEncoder, image: Path, tmp_path: Path
) -> None:
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(image.read_bytes()[:300])
    windows = [windows_on(path, random_boxes(3, 70, 100)) for path in (broken, image, missing)]
    cache = tmp_path / "cache"
    store = MapVectors(encoder, windows, cache) if kind == "maps" else CropVectors(cropper, windows, cache)
    failures = store.compute("features")
    assert [failure.path for failure in failures] == [str(broken), str(missing)]
    assert len(files(cache)) == 1
    assert store.vectors(1, torch.tensor([2])).isfinite().all()
    with pytest.raises(ImageError, match=r"broken\.png: "):
        store.vectors(0, torch.tensor([0]))
    with pytest.raises(ImageError, match=r"missing\.png: No such file"):
        store.vectors(2, torch.tensor([0]))


@pytest.mark.parametrize("kind", ["maps", "crops"])
def test_files_of_killed_runs_are_deleted(
    kind: str, encoder: RegionEncoder, cropper: CropEncoder, image: Path, tmp_path: Path
) -> None:
    windows = [windows_on(image, random_boxes(2, 90, 120))]
    source = MapVectors(encoder, windows, tmp_path) if kind == "maps" else CropVectors(cropper, windows, tmp_path)
    assert source.compute("vectors") == []
    (file,) = tmp_path.rglob("*.safetensors")
    left = file.parent / ".sppnet-killed.part"
    left.mkdir()
    assert source.compute("vectors") == []
    assert not left.exists()
    assert file.exists()


def test_digest_depends_only_on_the_content(image: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.png").write_bytes(image.read_bytes())
    assert content_digest(tmp_path / "copy.png") == content_digest(image)
    (tmp_path / "copy.png").write_bytes(image.read_bytes() + b"!")
    assert content_digest(tmp_path / "copy.png") != content_digest(image)


def test_cached_crop_vectors_match_the_encoder(cropper: CropEncoder, image: Path, tmp_path: Path) -> None:
    """The rows are unsorted and span two cache files."""
    boxes = random_boxes(259, 70, 100)
    stored = CropVectors(cropper, [windows_on(image, boxes)], tmp_path / "cache")
    rows = torch.tensor([258, 0, 255, 256, 3, 256])
    with torch.inference_mode():
        expected = cropper.distinct(load_image(image), boxes[rows]).data
        mirrored = cropper.distinct(ImageOps.mirror(load_image(image)), mirror(boxes[rows], 100)).data
    vectors = stored.vectors(0, rows)
    assert vectors.dtype == torch.float16
    assert vectors.shape == (6, stored.length) == (6, cropper.length)
    torch.testing.assert_close(vectors.float(), expected, rtol=1e-3, atol=1e-4)
    assert len(files(tmp_path / "cache")) == 2
    torch.testing.assert_close(stored.vectors(0, rows, mirrored=True).float(), mirrored, rtol=1e-3, atol=1e-4)
    cached = files(tmp_path / "cache")
    assert len(cached) == 4
    assert stored.compute("features", mirrored=True) == []
    assert torch.equal(stored.vectors(0, rows), vectors)
    assert files(tmp_path / "cache") == cached
    assert stored.vectors(0, rows[:0]).shape == (0, cropper.length)


def test_other_boxes_have_other_cache_files(cropper: CropEncoder, image: Path, tmp_path: Path) -> None:
    boxes = random_boxes(4, 70, 100)
    for part in (boxes, boxes + 1, boxes):
        stored = CropVectors(cropper, [windows_on(image, part)], tmp_path / "cache")
        with torch.inference_mode():
            expected = cropper.distinct(load_image(image), part).data
        torch.testing.assert_close(stored.vectors(0, torch.arange(4)).float(), expected, rtol=1e-3, atol=1e-4)
    assert len(files(tmp_path / "cache")) == 2


def test_values_beyond_half_precision_are_clamped(image: Path, tmp_path: Path) -> None:
    backbone = create_backbone("zf5")
    with torch.no_grad():
        backbone.network.get_submodule("conv5").weight.mul_(1e6)  # type: ignore[operator]
    encoder = RegionEncoder(backbone, (1,), (64,), 200)
    stored = MapVectors(encoder, [windows_on(image, boxes_of([(0, 0, 100, 70)]))], tmp_path)
    vectors = stored.vectors(0, torch.tensor([0]))
    assert vectors.isfinite().all()
    assert vectors.max() == torch.finfo(torch.float16).max


def test_usable_images_are_readable_and_at_least_one_has_an_object(image: Path) -> None:
    empty, full = windows_on(image, random_boxes(3, 70, 100)), make_windows([1.0], objects=1, path="full.png")
    error = ImageError("full.png", "no such file")
    assert usable_images([empty, full], []) == [0, 1]
    assert usable_images([empty, full, full], [ImageError(str(image), "damaged")]) == [1, 2]
    message = "data: expected a readable image with an object, got none"
    with pytest.raises(ValueError, match=rf"{message}; the first error: full\.png: no such file"):
        usable_images([empty, full], [error])
    with pytest.raises(ValueError, match=f"{message}$"):
        usable_images([empty], [])
