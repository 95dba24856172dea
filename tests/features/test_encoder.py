"""Region encoder: invariances of the vectors, choice of scales, results, saving, and error messages."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor, nn

from sppnet import (
    Failure,
    ImageError,
    RegionEncoder,
    RegionEncoderConfig,
    RegionFeatures,
    create_backbone,
    create_region_encoder,
    load,
    pyramid_pool,
    region_pyramid_pool,
    save,
)
from sppnet.features.encoder import PAPER_SCALES, choose_scales
from sppnet.features.options import ScaleRule
from sppnet.ops.boxes import mirror
from sppnet.ops.levels import CellRule, Reduce

RULES: tuple[CellRule, ...] = ("paper", "released", "roi_pool")
ADAPTIVE: tuple[tuple[CellRule, Reduce], ...] = (("paper", "max"), ("paper", "avg"), ("released", "max"))
RELEASED_SCALES = (480, 576, 688, 874, 1200)


def noise(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * width)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def inner_boxes(count: int, height: int, width: int) -> Tensor:
    """Boxes that do not touch the border."""
    first = torch.rand(count, 2) * torch.tensor([width, height]) * 0.7 + 1
    last = first + (torch.rand(count, 2) * 0.25 + 0.02) * torch.tensor([width, height])
    return torch.cat((first, last), dim=1)


@pytest.fixture(scope="module")
def small() -> RegionEncoder:
    return RegionEncoder(scales=(160,))


@pytest.fixture(scope="module")
def zf5() -> RegionEncoder:
    torch.manual_seed(0)
    return RegionEncoder("zf5", scales=(180,))


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "zf5", "resnet18"])
def test_box_of_the_whole_image_gets_the_vector_of_the_image(backbone: str) -> None:
    """The networks differ in the center of the first cell: near the border, far inside, and on the border."""
    network = create_backbone(backbone, weights="auto" if backbone != "resnet18" else None)
    for height, width in ((101, 150), (173, 90), (64, 64)):
        image = noise(height, width)
        boxes = torch.tensor([[0.0, 0, width, height], [-5, -3, width + 4, height + 900]])
        for rule, reduce in ADAPTIVE:
            encoder = RegionEncoder(network, scales=(160,), rule=rule, reduce=reduce)
            (vectors,) = encoder(image, boxes)
            with torch.inference_mode():
                data = encoder.prepare(image).maps[0].data
            assert min(data.shape[2:]) > 1
            expected = pyramid_pool(data, (6, 3, 2, 1), reduce=reduce)
            torch.testing.assert_close(vectors, expected.expand(2, -1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stage", [None, 3])
def test_inner_boxes_match_region_pyramid_pool_of_scaled_boxes(rule: CellRule, stage: int | None) -> None:
    encoder = RegionEncoder(create_backbone(stage=stage), levels=(3, 1), scales=(203,), rule=rule)
    image, boxes = noise(101, 150), inner_boxes(60, 101, 150)
    (vectors,) = encoder(image, boxes)
    with torch.inference_mode():
        features = encoder.prepare(image).maps[0]
    scaled = boxes * torch.tensor([301 / 150, 203 / 101, 301 / 150, 203 / 101])
    scale = (1 / features.stride[0], 1 / features.stride[1])
    expected = region_pyramid_pool(features.data, [scaled], (3, 1), scale, rule, offset=features.offset)
    assert torch.equal(vectors, expected)


def test_mirrored_image_has_mirrored_grids() -> None:
    """The filters are made symmetric; for sides of 32 k + 1 pixels, the padding is symmetric too."""
    encoder = RegionEncoder(scales=(225,), levels=(3,))
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(3)) / 2
    image = noise(225, 289)
    boxes = torch.tensor([[0.0, 0, 289, 225], [20, 30, 170, 190], [100, 0, 289, 170], [60, 64, 200, 225]])
    (original,) = encoder(image, boxes)
    (mirrored,) = encoder(ImageOps.mirror(image), mirror(boxes, 289))
    grids, expected = (part.unflatten(1, (-1, 3, 3)) for part in (mirrored.flatten(1), original.flatten(1)))
    torch.testing.assert_close(grids, expected.flip(3), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(grids, expected, rtol=1e-1, atol=1e-1)


def test_exif_orientation_does_not_change_the_vectors(small: RegionEncoder, tmp_path: Path) -> None:
    image, boxes = noise(80, 120), inner_boxes(9, 80, 120)
    transposes = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    vectors = []
    for orientation, transpose in transposes.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        stored = image if transpose is None else image.transpose(transpose)
        stored.save(tmp_path / f"{orientation}.png", exif=exif)
        vectors += small(tmp_path / f"{orientation}.png", boxes)
    assert all(torch.equal(part, vectors[0]) for part in vectors)


def test_all_image_source_types_give_the_same_vectors(small: RegionEncoder, tmp_path: Path) -> None:
    image, boxes = noise(70, 90), inner_boxes(3, 70, 90)
    image.save(tmp_path / "a.png")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    sources: list[Any] = [tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), image, np.asarray(image), pixels]
    vectors = [*small(sources, [boxes] * 5), *small(str(tmp_path / "a.png"), [boxes])]
    assert all(torch.equal(part, vectors[0]) for part in vectors)


BOXES = [[1, 2, 30, 40], [5, 6, 90, 70]]


def test_results_have_a_dict_a_repr_and_a_picture(tmp_path: Path) -> None:
    encoder = create_region_encoder(backbone="zf5", levels=(1,), scales=(64,))
    noise(70, 90).save(tmp_path / "a.png")
    (result,) = encoder.predict(tmp_path / "a.png", BOXES)
    assert isinstance(result, RegionFeatures)
    assert (result.source, result.size, result.ids) == (str(tmp_path / "a.png"), (70, 90), ("0", "1"))
    content = json.loads(json.dumps(result.to_dict()))
    assert content == {
        "source": str(tmp_path / "a.png"),
        "size": [70, 90],
        "boxes": BOXES,
        "vectors": result.vectors.tolist(),
    }
    assert repr(result) == f"RegionFeatures('{tmp_path / 'a.png'}', 70 x 90: 2 boxes, vectors of length 256)"
    picture = np.asarray(dataclasses.replace(result, ids=("", "")).draw(Image.new("RGB", (90, 70))))
    rows, columns = np.nonzero(picture.any(2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 69, 1, 89)
    assert not picture[20, 10].any(), "the inside of the boxes must not be covered"


def test_unusable_images_raise_or_become_failures(zf5: RegionEncoder, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    images: list[Any] = [noise(70, 90), tmp_path / "text.png", noise(70, 90)]
    with pytest.raises(ImageError, match=r"text\.png: not an image"):
        zf5.predict(images, [BOXES] * 3)
    first, failure, last = zf5.predict(images, [BOXES] * 3, on_error="skip")
    assert isinstance(failure, Failure)
    assert (failure.source, failure.error.path) == (str(tmp_path / "text.png"),) * 2
    assert isinstance(first, RegionFeatures)
    assert isinstance(last, RegionFeatures)
    assert (first.source, last.source) == ("image 0", "image 2")
    assert torch.equal(first.vectors, last.vectors)


def test_predict_runs_in_evaluation_mode_and_restores_the_modes() -> None:
    encoder = RegionEncoder(create_backbone("test_resnet", weights=None), (1,), (64,))
    (expected,) = encoder(noise(70, 90), BOXES)
    encoder.train()
    (vectors,) = encoder(noise(70, 90), BOXES)
    assert torch.equal(vectors, expected)
    assert all(module.training for module in encoder.modules())


def test_saved_encoders_give_the_same_vectors(tmp_path: Path) -> None:
    config = RegionEncoderConfig("test_resnet", -1, (2, (1, 3)), (96, 160), 300, "released", "avg", "released")
    encoder = create_region_encoder(config, None, scales=(96, 128))
    assert encoder.config == dataclasses.replace(config, stage=encoder.backbone.stage, scales=(96, 128))
    save(encoder, tmp_path)
    restored = load(tmp_path)
    assert isinstance(restored, RegionEncoder)
    assert restored.config == encoder.config
    assert torch.equal(restored(noise(70, 90), BOXES)[0], encoder(noise(70, 90), BOXES)[0])


def test_distinct_vectors_match_those_of_single_boxes(small: RegionEncoder) -> None:
    image, boxes = noise(101, 150), inner_boxes(80, 101, 150)
    with torch.inference_mode():
        maps = small.prepare(image)
        distinct = small.distinct(maps, boxes)
        single = torch.cat([small.vectors(maps, box[None]) for box in boxes])
        assert torch.equal(small.vectors(maps, boxes), single)
    assert len(distinct.data) < len(boxes)
    assert len(distinct.data.unique(dim=0)) == len(distinct.data)
    assert torch.equal(distinct.data[distinct.index], single)


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_each_box_is_pooled_at_its_chosen_scale(rule: ScaleRule) -> None:
    backbone, scales = create_backbone(), (96, 160, 320)
    image = noise(101, 150)
    boxes = torch.cat((inner_boxes(20, 101, 150), torch.tensor([[0.0, 0, 150, 101], [70, 50, 74, 53]])))
    (vectors,) = RegionEncoder(backbone, (2, 1), scales, scale_rule=rule)(image, boxes)
    single = torch.stack([RegionEncoder(backbone, (2, 1), (scale,))(image, boxes)[0] for scale in scales])
    chosen = choose_scales(boxes, (101, 150), scales, rule)
    assert len(chosen.unique()) > 1
    assert torch.equal(vectors, single[chosen, torch.arange(len(boxes))])


def test_several_images_match_single_images(small: RegionEncoder) -> None:
    images = [noise(101, 150), noise(64, 50), noise(90, 90)]
    boxes = [inner_boxes(5, 101, 150), torch.empty(0, 4), inner_boxes(3, 90, 90).double()]
    together = small(images, boxes)
    assert [part.shape for part in together] == [(5, 64000), (0, 64000), (3, 64000)]
    for image, part, vectors in zip(images, boxes, together, strict=True):
        assert torch.equal(vectors, small(image, part)[0])


def test_chunks_of_boxes_match_all_boxes_at_once(small: RegionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    image, boxes = noise(101, 150), inner_boxes(300, 101, 150)
    (whole,) = small(image, boxes)
    for count in (1, 7, 299, 300):
        monkeypatch.setattr("sppnet.features.encoder._CHUNK", count * small.length + 5)
        assert torch.equal(small(image, boxes)[0], whole)
    with torch.inference_mode():
        out = torch.zeros(300, small.length, dtype=torch.float16)
        small.fill(out, small.prepare(image), boxes)
    assert torch.equal(out, whole.half())


def test_encodes_20000_boxes() -> None:
    encoder = RegionEncoder(create_backbone(stage=3), (1,), (160,))
    boxes = inner_boxes(20_000, 101, 150)
    (vectors,) = encoder(noise(101, 150), boxes)
    rows = torch.randint(20_000, (50,))
    assert torch.equal(vectors[rows], encoder(noise(101, 150), boxes[rows])[0])


def test_vectors_are_pooled_from_the_reported_cells(zf5: RegionEncoder) -> None:
    boxes = torch.cat((inner_boxes(20, 101, 150), torch.tensor([[-9.0, 0, 60, 101]])))
    with torch.inference_mode():
        maps = zf5.prepare(noise(101, 150))
        vectors = zf5.vectors(maps, boxes)
    for box, vector in zip(boxes, vectors, strict=True):
        covered = zf5.cells(box, (101, 150))
        left, top, right, bottom = covered.cells
        crop = maps.maps[0].data[:, :, top:bottom, left:right]
        assert (covered.scale, covered.network_size) == (180, maps.network_sizes[0])
        assert covered.map_size == tuple(maps.maps[0].data.shape[2:])
        assert torch.equal(pyramid_pool(crop, (6, 3, 2, 1))[0], vector)


@pytest.mark.parametrize(
    ("rule", "scales", "expected"),
    [
        ("paper", PAPER_SCALES, {40: 1200, 100: 864, 120: 688, 150: 576, 180: 480, 300: 480}),
        ("released", RELEASED_SCALES, {80: 874, 100: 688, 150: 480}),
        ("released", PAPER_SCALES, {100: 864}),
        ("paper", (864, 480, 864), {100: 864}),
    ],
)
def test_choose_scales_matches_values_computed_by_hand(
    rule: ScaleRule, scales: tuple[int, ...], expected: dict[int, int]
) -> None:
    """Square boxes in landscape and portrait images with a shorter side of 375 pixels; keys are box sides."""
    boxes = torch.tensor([[20.0, 30, 20 + side, 30 + side] for side in expected])
    for size in ((375, 500), (500, 375)):
        chosen = choose_scales(boxes, size, scales, rule).tolist()
        assert [scales[number] for number in chosen] == list(expected.values())
        assert all(number == scales.index(scales[number]) for number in chosen)  # a repeated scale: the first wins


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((375, 500), 688, (688, 917)),
        ((500, 375), 480, (640, 480)),
        ((100, 1000), 688, (200, 2000)),
        ((1, 5000), 688, (1, 2000)),
    ],
)
def test_network_size_keeps_the_aspect_ratio_within_limits(
    small: RegionEncoder, size: tuple[int, int], scale: int, expected: tuple[int, int]
) -> None:
    smallest = max(small.backbone.geometry.smallest())
    assert small.network_size(size, scale) == tuple(max(side, smallest) for side in expected)


def test_accepts_very_thin_images(zf5: RegionEncoder) -> None:
    (vectors,) = zf5(noise(3, 900), torch.tensor([[0.0, 0, 900, 3], [400, 1, 402, 2]]))
    assert vectors.isfinite().all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, r"scales: expected shorter sides of at least \d+ pixels for zf5, got \(\)"),
        ({"scales": (180, 2)}, r"scales: expected shorter sides of at least \d+ pixels for zf5, got \(180, 2\)"),
        ({"scales": (180, 2400)}, "max_side: expected at least the largest scale, 2400, got 2000"),
    ],
)
def test_rejects_scales_that_the_backbone_cannot_use(zf5: RegionEncoder, options: dict[str, Any], message: str) -> None:
    create: Callable[..., RegionEncoder] = RegionEncoder
    with pytest.raises(ValueError, match=message):
        create(zf5.backbone, **options)


@pytest.mark.parametrize("name", ["zf5", "test_resnet", "test_vit", "module"])
@pytest.mark.parametrize(("reduce", "rule"), [("max", "paper"), ("avg", "released")])
def test_vector_without_boxes_is_that_of_the_whole_map(name: str, reduce: Reduce, rule: CellRule) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2))
    backbone = create_backbone(module) if name == "module" else create_backbone(name, weights=None)
    encoder = RegionEncoder(backbone, (2, 1), (96,), reduce=reduce, rule=rule)
    images = [Image.effect_noise(size, 60).convert("RGB") for size in ((70, 110), (120, 64))]
    for image, result in zip(images, encoder.predict(images), strict=True):
        with torch.inference_mode():
            (features,) = encoder.prepare(image).maps
        torch.testing.assert_close(result.vectors, pyramid_pool(features.data, (2, 1), reduce=reduce))
        assert result.boxes.tolist() == [[0, 0, image.width, image.height]]
