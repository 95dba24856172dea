"""Tests of Fast R-CNN: batches, loss, frozen layers, resuming and learning."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import sppnet.training.loop
from sppnet.backbones.backbone import create_backbone
from sppnet.data.images import load_image
from sppnet.detect.classic.fast import (
    FastNetwork,
    OffsetNorm,
    RegionBatches,
    Regions,
    fit_fast,
    freeze,
    multi_task_loss,
)
from sppnet.detect.classic.windows import Windows
from sppnet.detect.evaluate import evaluate_detector
from sppnet.detect.model import Detector, create_detector
from sppnet.detect.options import DetectOptions
from sppnet.detect.train import detector_config, train_detector
from sppnet.errors import ImageError
from sppnet.features.encoder import RegionEncoder
from sppnet.ops.boxes import decode, encode
from sppnet.registry import load
from tests.helpers.detection_data import write_voc

PLAIN = OffsetNorm(torch.zeros(2, 4), torch.ones(2, 4))


def options(**changed: object) -> DetectOptions:
    small = {"scales": (160,), "proposals": "grid", "windows": 300, "hidden": (64, 64), "epochs": 20, "lr": 1e-3}
    return DetectOptions(method="fast", **(small | changed))  # type: ignore[arg-type]


def encoder(*scales: int) -> RegionEncoder:
    return RegionEncoder(create_backbone(stage=3), (7,), scales or (64,), rule="roi_pool")


def windows(path: Path, positive: int, near: int, far: int) -> Windows:
    """Create windows with alternating labels; x1 encodes the overlap: 10 positive, 20 near, 30 far."""
    x1 = torch.tensor([10.0] * positive + [20.0] * near + [30.0] * far)
    overlap = torch.where(x1 == 10, 0.5, torch.where(x1 == 20, 0.1, 0.0999))
    boxes = torch.stack((x1, x1, x1 + 20, x1 + 30), dim=1)
    labels = torch.arange(len(boxes)) % 2
    counts = torch.ones(len(boxes), dtype=torch.bool)
    return Windows(path, boxes, 1, labels, overlap, boxes + 1, torch.zeros(len(boxes), 2), counts)


def object_windows(path: Path, boxes: Tensor, targets: Tensor) -> Windows:
    """Create windows that are all on objects of the first class."""
    count = len(boxes)
    counts, labels = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.long)
    return Windows(path, boxes, 0, labels, torch.ones(count), targets, torch.ones(count, 2), counts)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a gray image, 80 pixels wide and 64 high, with a white rectangle at x 10..30, y 20..40."""
    path = tmp_path_factory.mktemp("picture") / "a.png"
    pixels = np.full((64, 80, 3), 100, dtype=np.uint8)
    pixels[20:40, 10:30] = 255
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc") / "data", 9, 4)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fast") / "run"
    assert train_detector(data, out, options()).finished
    return out


def test_batch_has_two_images_with_16_positive_and_48_background_regions_each(picture: Path) -> None:
    batches = RegionBatches(encoder(), [windows(picture, 30, 90, 90)] * 4, 2, PLAIN, options(mirror=False))
    assert batches.steps == 2
    for pictures, regions, failures in batches.epoch(0, 0):
        assert failures == []
        assert len(pictures) == 2
        assert len(regions) == 128
        for (_, boxes), labels in zip(pictures, regions.labels.split(64), strict=True):
            left = boxes[:, 0].tolist()
            assert [left.count(x1) for x1 in (10, 20, 30)] == [16, 48, 0]
            assert [x1 == 10 for x1 in left] == (labels < 2).tolist()
            assert labels[labels < 2].unique().tolist() == [0, 1]
            assert len({tuple(row) for row in boxes.tolist()}) == 2


def test_images_with_too_few_regions_give_fewer_and_images_without_any_are_skipped(picture: Path) -> None:
    eight, none = windows(picture, 3, 5, 90), windows(picture, 0, 0, 90)
    batches = RegionBatches(encoder(), [eight, none, eight, eight], 2, PLAIN, options())
    counts = [(len(pictures), len(regions)) for pictures, regions, _ in batches.epoch(0, 0)]
    assert counts == [(2, 16), (1, 8)]


def test_batches_depend_only_on_seed_epoch_and_step(picture: Path) -> None:
    parts = [windows(picture, 30 + number, 90, 0) for number in range(6)]

    def drawn(epoch: int, start: int, seed: int = 0) -> list[Tensor]:
        batches = RegionBatches(encoder(64, 96), parts, 2, PLAIN, options(seed=seed))
        return [
            torch.cat([*(x.flatten() for picture in pictures for x in picture), regions.offsets.flatten()])
            for pictures, regions, _ in batches.epoch(epoch, start)
        ]

    def same(a: list[Tensor], b: list[Tensor]) -> bool:
        return all(x.equal(y) for x, y in zip(a, b, strict=True))

    assert same(drawn(3, 1), drawn(3, 0)[1:])
    assert not same(drawn(3, 0), drawn(4, 0))
    assert not same(drawn(3, 0), drawn(3, 0, seed=1))


def test_boxes_follow_mirrored_and_resized_images(picture: Path) -> None:
    box = torch.tensor([[10.0, 20, 30, 40]])
    part = object_windows(picture, box, box + torch.tensor([[4.0, 0, 4, 0]]))
    batches = RegionBatches(encoder(64, 128), [part], 2, PLAIN, options())
    variants = set()
    for epoch in range(16):
        (pixels, boxes), regions = batches.example(0, epoch)
        scale = pixels.shape[2] / 64
        assert pixels.shape == (1, 3, 64 * scale, 80 * scale)
        left, top, right, bottom = boxes[0].round().int().tolist()
        assert pixels[0, :, top:bottom, left:right].mean() > pixels.amax() - 0.1
        assert pixels[0].amax(0).gt(pixels.amax() - 0.1).sum() == pytest.approx(400 * scale**2, rel=0.1)
        mirrored = left > 40 * scale
        torch.testing.assert_close(regions.offsets, torch.tensor([[-0.2 if mirrored else 0.2, 0, 0, 0]]))
        variants.add((scale, mirrored))
    assert variants == {(1, False), (1, True), (2, False), (2, True)}


def test_training_and_prediction_pool_the_same_vectors(picture: Path) -> None:
    model = create_detector(detector_config(options(scales=(64,)), ("a", "b")))
    boxes = torch.tensor([[0.0, 0, 80, 64], [10, 20, 30, 40], [60, 3, 80, 9]])
    part = object_windows(picture, boxes, boxes)
    assert isinstance(model.encoder, RegionEncoder)
    batches = RegionBatches(model.encoder, [part], 2, PLAIN, options(mirror=False))
    batches._draw = lambda *_: torch.arange(3)  # type: ignore[method-assign]
    (pixels, drawn), _ = batches.example(0, 0)
    logits, _ = FastNetwork(model).eval()([(pixels, drawn)])
    maps = model.encoder.prepare(load_image(picture))
    torch.testing.assert_close(logits, model(model.encoder.vectors(maps, boxes))[0])


def test_loss_of_three_regions_has_hand_computed_value() -> None:
    logits = torch.zeros(3, 3, requires_grad=True)
    offsets = torch.zeros(3, 2, 4, requires_grad=True)
    regions = Regions(torch.tensor([1, 2, 0]), torch.tensor([[0.5, 2, 0, -1], [9, 9, 9, 9], [0, 0, 0, -3]]))
    loss, correct = multi_task_loss((logits, offsets), regions)
    # smooth L1: 0.125 + 1.5 + 0 + 0.5 for the first region, 0 for background, 2.5 for the last
    assert loss.item() == pytest.approx(math.log(3) + (2.125 + 2.5) / 3)
    assert correct == 1
    loss.backward()
    assert offsets.grad is not None
    has_gradient = offsets.grad.abs().sum(2) > 0
    assert has_gradient.tolist() == [[False, True], [False, False], [True, False]]
    torch.testing.assert_close(offsets.grad[0, 1], torch.tensor([-0.5, -1, 0, 1]) / 3)
    assert multi_task_loss((logits, None), regions)[0].item() == pytest.approx(math.log(3))


def test_offsets_of_each_class_are_normalized_to_mean_0_and_deviation_1(picture: Path) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    targets = torch.tensor([[1.0, 0, 11, 10], [3, 0, 13, 10], [0, 4, 10, 14], [50, 50, 60, 60]])
    labels, overlap = torch.tensor([0, 0, 1, 1]), torch.tensor([0.9, 0.5, 0.6, 0.4])
    part = Windows(picture, boxes, 0, labels, overlap, targets, torch.zeros(4, 3), torch.ones(4, dtype=torch.bool))
    norm = OffsetNorm.measure([part], 3)
    torch.testing.assert_close(norm.mean, torch.tensor([[0.2, 0, 0, 0], [0, 0.4, 0, 0], [0, 0, 0, 0]]))
    torch.testing.assert_close(norm.deviation[:, 0], torch.tensor([0.1, 0.01, 1]))
    normalized = norm.apply(encode(boxes[:2], targets[:2]), labels[:2])
    torch.testing.assert_close(normalized, torch.tensor([[-1.0, 0, 0, 0], [1, 0, 0, 0]]))


def test_undoing_the_normalization_gives_the_same_boxes() -> None:
    norm = OffsetNorm(torch.randn(3, 4) / 10, torch.rand(3, 4) / 10 + 0.1)
    layer, x = nn.Linear(5, 12), torch.randn(7, 5)
    boxes = torch.tensor([[10.0, 10, 30, 50]]).expand(7, 4)
    labels = torch.arange(7) % 3
    normalized = layer(x).unflatten(1, (3, 4))[range(7), labels].detach()
    norm.undo(layer)
    plain = layer(x).unflatten(1, (3, 4))[range(7), labels].detach()
    expected = decode(boxes, normalized * norm.deviation[labels] + norm.mean[labels])
    torch.testing.assert_close(decode(boxes, plain), expected)
    torch.testing.assert_close(norm.apply(plain, labels), normalized)


@pytest.mark.parametrize(
    ("name", "frozen", "free"),
    [
        ("resnet18", ("conv1.", "layer1.", "layer2.0.bn1."), ("layer2.0.conv1.", "layer3.1.conv2.")),
        (
            "tf_efficientnet_lite0",
            ("conv_stem.", "blocks.0", "blocks.1", "blocks.3.0.bn2"),
            ("blocks.2.0.conv_pw.",),
        ),
        ("convnext_atto", ("stem.", "stages.0."), ("stages.1.downsample.",)),
        ("zf5", ("conv1.",), ("conv2.", "conv5.")),
    ],
)
def test_freezes_stem_first_stage_and_batch_norms(
    name: str, frozen: tuple[str, ...], free: tuple[str, ...]
) -> None:  # fmt: skip
    backbone = create_backbone(name, weights=None)
    freeze(backbone)
    trainable = {name: parameter.requires_grad for name, parameter in backbone.network.named_parameters()}
    for prefix in frozen:
        assert {value for name, value in trainable.items() if name.startswith(prefix)} == {False}
    for prefix in free:
        assert {value for name, value in trainable.items() if name.startswith(prefix)} == {True}


def test_training_changes_exactly_the_layers_that_are_not_frozen(trained: Path) -> None:
    before, after = create_backbone(stage=3), load(trained)
    assert isinstance(after, Detector)
    freeze(before)
    learned = dict(after.encoder.backbone.named_parameters())
    for name, parameter in before.named_parameters():
        assert torch.equal(learned[name], parameter) != parameter.requires_grad, name
    statistics = dict(after.encoder.backbone.named_buffers())
    assert all(torch.equal(statistics[name], buffer) for name, buffer in before.named_buffers())


def test_loss_decreases_and_objects_are_detected(trained: Path, data: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train_loss"] < 0.5 * lines[0]["train_loss"]
    model = load(trained)
    assert isinstance(model, Detector)
    assert evaluate_detector(model, data, split="test", cache=tmp_path).scores.ap50 > 0.8


def test_interrupted_and_resumed_training_matches_an_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = options(epochs=3, scales=(64, 96), hidden=(16,), cache=str(tmp_path / "cache"))
    assert train_detector(data, tmp_path / "uninterrupted", short).finished
    for stop in (2, 5):  # after two of the four steps of the first epoch, and in the second
        checks = 0

        @contextlib.contextmanager
        def interrupts() -> Iterator[object]:
            def interrupted() -> bool:
                nonlocal checks
                checks += 1
                return checks >= stop  # noqa: B023

            yield interrupted

        with monkeypatch.context() as patch:
            patch.setattr(sppnet.training.loop, "_interrupts", interrupts)
            assert not train_detector(data, tmp_path / "run", short, resume=True).finished
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert train_detector(data, tmp_path / "run", short, resume=True).finished
    expected, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("uninterrupted", "run"))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_unreadable_images_are_reported_and_skipped(picture: Path, tmp_path: Path) -> None:
    good, bad = windows(picture, 4, 4, 0), windows(tmp_path / "gone.png", 4, 4, 0)
    one_epoch = options(epochs=1, scales=(64,), device="cpu")
    failures: list[ImageError] = []
    model = create_detector(detector_config(one_epoch, ("a", "b")))
    before = model.state_dict()["fc.fc6.weight"].clone()
    (tmp_path / "some").mkdir()
    assert fit_fast(model, [bad, good, good], one_epoch, tmp_path / "some", failures)
    assert {Path(failure.path).name for failure in failures} == {"gone.png"}
    assert not torch.equal(model.state_dict()["fc.fc6.weight"], before)
    (tmp_path / "none").mkdir()
    with pytest.raises(
        ValueError, match=r"data: expected an image with a training target, got none; the first error is .*gone\.png"
    ):
        fit_fast(model, [bad, bad], one_epoch, tmp_path / "none", [])


def test_rejects_detectors_without_softmax(picture: Path, tmp_path: Path) -> None:
    model = create_detector(detector_config(DetectOptions(hidden=()), ("a",)))
    with pytest.raises(ValueError, match="model: expected a Fast R-CNN with a softmax, got method 'spp'"):
        fit_fast(model, [windows(picture, 1, 1, 1)], options(), tmp_path, [])
