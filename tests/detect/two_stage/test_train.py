"""Training of two-stage detectors."""

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sppnet
from sppnet import TwoStageDetector, TwoStageOptions
from sppnet.data.formats.detection import read_detection
from sppnet.data.images import load_image
from sppnet.detect.evaluate import evaluate_detector
from sppnet.detect.train import train_detector
from sppnet.detect.two_stage import regions
from sppnet.detect.two_stage.losses import Objects
from sppnet.detect.two_stage.train import TwoStageLoss
from tests.helpers.detection_data import CLASSES, write_voc
from tests.helpers.two_stage import TINY, tiny_detector

OPTIONS = TwoStageOptions(**TINY, weights="none", epochs=1, windows=50, workers=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc") / "data", 5, 3)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppnet.detect.two_stage.batches._STEPS", 2)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def damage(path: Path) -> None:
    """Truncate an image, so that its size can still be read."""
    path.write_bytes(path.read_bytes()[:400])


def replace_image(root: Path, name: str, size: tuple[int, int], boxes: list[tuple[int, int, int, int]]) -> None:
    """Replace an image by noise of this (width, height), with squares of these edges."""
    Image.effect_noise(size, 60).convert("RGB").save(root / "JPEGImages" / f"{name}.png")
    objects = ""
    for x1, y1, x2, y2 in boxes:
        edges = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        objects += f"<object><name>square</name><bndbox>{edges}</bndbox></object>"
    text = f"<annotation><filename>{name}.png</filename>{objects}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(text)


def test_interrupted_and_resumed_training_matches_an_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, epochs=2, batch=2, cache=str(tmp_path / "cache"))
    expected = train_detector(data, tmp_path / "whole", options, val="test")
    assert expected.finished
    sample, calls = regions.sample, 0

    def interrupt(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:  # in the second epoch
            signal.raise_signal(signal.SIGINT)
        return sample(*arguments)

    monkeypatch.setattr("sppnet.detect.two_stage.train.sample", interrupt)
    assert not train_detector(data, tmp_path / "run", options, val="test").finished
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = train_detector(data, tmp_path / "run", options, val="test", resume=True)
    assert resumed.finished
    assert resumed.scores == expected.scores
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "whole" / "run.json").read_text() == (tmp_path / "run" / "run.json").read_text()


def test_weights_depend_on_the_seed_and_the_backbone_stays(data: Path, tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = replace(OPTIONS, seed=seed, cache=str(tmp_path / "cache"))
        assert train_detector(data, tmp_path / name, options, val="none").scores == {}
        states.append(weights(tmp_path / name))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["region.score.weight"], states[2]["region.score.weight"])
    torch.manual_seed(0)
    before = tiny_detector().state_dict()
    assert all(torch.equal(states[0][name], before[name]) for name in before if name.startswith("backbone."))
    changed = ("dense.score.weight", "dense.distances.weight", "region.offsets.weight", "region.norm.running_mean")
    assert not any(torch.equal(states[0][name], before[name]) for name in changed)


def test_validation_scores_are_those_of_the_evaluation(data: Path, tmp_path: Path) -> None:
    """Cached maps are rounded to half precision."""
    result = train_detector(data, tmp_path / "run", OPTIONS, val="test")
    assert result.stages.keys() == {"feature maps", "training", "validation"}
    model = sppnet.load(result.run)
    assert isinstance(model, TwoStageDetector)
    assert (model.config.calibration is not None) == (result.scores["ap50"] > 0)
    scores = evaluate_detector(model, data, split="test").scores
    assert result.scores == pytest.approx({"ap50": scores.ap50, "map": scores.map}, abs=0.05)
    row = json.loads((result.run / "metrics.jsonl").read_text().splitlines()[-1])
    assert row.keys() >= {"train_loss", "train_region_accuracy", "val_map", "val_ap50"}
    modified = (result.run / "model.safetensors").stat().st_mtime_ns
    again = train_detector(data, tmp_path / "run", OPTIONS, val="test", resume=True)
    assert again.scores == pytest.approx(result.scores, abs=0.05)
    assert "training" not in again.stages
    assert (result.run / "model.safetensors").stat().st_mtime_ns == modified
    files = {path.name for path in result.run.iterdir()}
    assert files == {"cache", "metrics.csv", "metrics.jsonl", "model.safetensors", "options.json", "run.json"}


@pytest.mark.parametrize("stages", ["0", "1"])
def test_undecodable_images_are_reported_and_skipped(data: Path, tmp_path: Path, stages: str) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    images = root / "JPEGImages"
    damage(images / "train2.png")
    damage(images / "test1.png")
    (images / "train3.png").write_bytes(b"no image")
    (images / "test2.png").write_bytes(b"no image")
    with (root / "ImageSets/Main/test.txt").open("a") as file:
        file.write("train1\n")
    result = train_detector(root, tmp_path / "run", replace(OPTIONS, train_stages=stages), val="test")
    assert result.finished
    assert result.scores.keys() == {"ap50", "map"}
    assert {Path(failure.path).stem for failure in result.failures} == {"train2", "train3", "test1", "test2"}


@pytest.mark.parametrize("backbone", ["test_resnet", "zf5", "test_vit"])
def test_last_stage_of_a_backbone_is_trained(backbone: str, data: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, backbone=backbone, train_stages="1", lr=0.01)
    result = train_detector(data, tmp_path / "run", options, val="none")
    assert result.finished
    assert not (result.run / "cache").exists()
    torch.manual_seed(0)
    before = dict(tiny_detector(backbone=backbone).named_parameters())
    after = weights(result.run)
    changed = {name for name in before if name.startswith("backbone.") and not torch.equal(after[name], before[name])}
    parts = {"test_resnet": "layer4", "zf5": "", "test_vit": "blocks.5"}
    assert any(parts[backbone] in name for name in changed)
    assert len(changed) < len(before)


def test_single_image_is_enough(data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    (root / "ImageSets/Main/train.txt").write_text("train1\n")
    assert train_detector(root, tmp_path / "run", OPTIONS).finished


@pytest.mark.parametrize(
    ("size", "boxes"),
    [
        ((1, 1), []),
        ((2, 300), [(0, 100, 2, 200)]),
        ((80, 60), [(-500, -20, 900, 700)]),
        ((200, 160), [(x, y, x + 3, y + 3) for x in range(0, 200, 4) for y in range(0, 160, 4)]),
    ],
    ids=["1 px", "2 px wide", "box larger than the image", "2,000 objects"],
)
def test_extreme_images_are_trained_on(
    size: tuple[int, int], boxes: list[tuple[int, int, int, int]], data: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    replace_image(root, "train1", size, boxes)
    result = train_detector(root, tmp_path / "run", OPTIONS, val="none")
    assert result.finished
    assert not result.failures
    assert all(tensor.isfinite().all() for tensor in weights(result.run).values())
    (image,) = (part for part in read_detection(root, "train").samples if part.path.stem == "train1")
    assert len(image.boxes) == len(boxes)
    assert (image.boxes <= torch.tensor([*size, *size])).all()


def test_class_of_validation_images_only_is_reported_and_missed(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    file = root / "Annotations/test1.xml"
    file.write_text(re.sub("disc|square", "ring", file.read_text()))
    result = train_detector(root, tmp_path / "run", OPTIONS, val="test")
    model = sppnet.load(result.run)
    assert isinstance(model, TwoStageDetector)
    assert model.config.classes == CLASSES
    assert "classes unknown to the model, whose objects count as missed: ring" in caplog.messages
    report = evaluate_detector(model, root, split="test")
    assert report.scores.per_class["ring"].ap50 == 0


def test_training_without_objects_is_an_error(data: Path, tmp_path: Path) -> None:
    empty = write_voc(tmp_path / "empty", 1, 1)  # the first image of each split has no object
    with pytest.raises(ValueError, match=r"^data: expected an object that is not difficult, got none in 1 images"):
        train_detector(empty, tmp_path / "run", OPTIONS)
    root = Path(shutil.copytree(data, tmp_path / "data"))
    (root / "ImageSets/Main/train.txt").write_text("train0\ntrain1\n")
    damage(root / "JPEGImages/train1.png")
    text = r"^data: expected an object that is not difficult, got none in 1 readable images; .*train1\.png: "
    with pytest.raises(ValueError, match=text):
        train_detector(root, tmp_path / "run", OPTIONS, val="none")
    (root / "ImageSets/Main/train.txt").write_text("")
    with pytest.raises(ValueError, match=r"train\.txt: expected at least one image, got none"):
        train_detector(root, tmp_path / "run", OPTIONS, split="train")


def test_starts_from_the_heads_of_another_run(data: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, cache=str(tmp_path / "cache"))
    first = train_detector(data, tmp_path / "first", options, val="none")
    second = train_detector(data, tmp_path / "second", replace(options, init=str(first.run), lr=0.0), val="none")
    before, after = weights(first.run), weights(second.run)
    for name in ("dense.score.weight", "region.score.weight", "region.offsets.weight"):
        torch.testing.assert_close(after[name], before[name])


def test_runs_share_a_cache_of_maps(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "sppnet")
    options = replace(OPTIONS, cache=str(tmp_path / "cache"))
    for name, computed in (("first", True), ("second", False)):
        caplog.clear()
        train_detector(data, tmp_path / name, replace(options, lr=0.001 * len(name)), val="test")
        assert ("computed the feature maps of 5 of 5 images" in caplog.text) == computed
    monkeypatch.setattr("sppnet.detect.two_stage.train.GIGABYTE", 1)
    with pytest.raises(ValueError, match=r"cache: expected room for about .* raise cache_limit"):
        train_detector(data, tmp_path / "third", replace(options, side=80, cache_limit=1.0), val="none")


def test_images_without_proposals_have_the_loss_of_the_dense_head() -> None:
    model = tiny_detector()
    module = TwoStageLoss(model, torch.ones(2), frozen=True).train()
    maps = model.maps(torch.zeros(1, 3, 32, 32))
    none = Objects(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).bool())
    loss, right = module(maps, [(0, 0)], [none])
    assert loss.isfinite()
    assert right == 0


def test_gradients_of_pixels_reach_the_backbone(data: Path) -> None:
    model = tiny_detector().train()
    module = TwoStageLoss(model, torch.ones(2), frozen=False)
    x = model.prepare(load_image(data / "JPEGImages" / "train1.png"))
    objects = Objects(torch.tensor([[5.0, 5, 40, 40]]), torch.tensor([1]), torch.tensor([False]))
    loss, _ = module([x], [(64, 75)], [objects])
    loss.backward()
    gradients = [parameter.grad for parameter in model.backbone.parameters()]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@pytest.mark.slow
def test_learns_discs_and_squares_from_forty_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    data = write_voc(tmp_path / "data", 40, 10)
    options = TwoStageOptions(side=96, max_side=128, epochs=4)
    result = train_detector(data, tmp_path / "run", options, val="test")
    assert result.scores["ap50"] > 0.8
    model = sppnet.load(result.run)
    assert isinstance(model, TwoStageDetector)
    assert model.config.calibration is not None
    assert evaluate_detector(model, data, split="test").scores.ap50 == pytest.approx(result.scores["ap50"], abs=0.05)
    assert model.config.classes == CLASSES
