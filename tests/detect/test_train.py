"""Tests of detector training, evaluation and prediction through the command line."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sppnet
from sppnet import DetectorConfig
from sppnet.backbones.networks import stage_of_stride
from sppnet.cli.main import run
from sppnet.data.images import load_image
from sppnet.detect.model import create_detector
from sppnet.detect.options import DetectOptions
from sppnet.detect.train import detector_config, train_detector
from tests.helpers.annotation_files import coco_document, write_image, write_json
from tests.helpers.detection_data import CLASSES, write_voc
from tests.helpers.killed_training import stop_after_checkpoint

SMALL = [
    "--method", "spp", "--scales", "160", "--proposals", "grid", "--windows", "300", "--hidden", "64,64", "--levels",
    "3,2,1",
]  # fmt: skip
QUICK = [*SMALL, "--epochs", "4", "--steps", "40", "--val", "none"]
TINY = DetectOptions(scales=(96,), proposals="grid", windows=60, hidden=(16, 16), levels=(2, 1), epochs=1, steps=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc") / "data", 12, 6)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("spp") / "run"
    assert run(["train", "detect", str(data), "--split", "train", "--out", str(out), *QUICK]) == 0
    return out


def test_spp_net_learns_from_twelve_images(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(trained), str(data), "--split", "test", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores.keys() >= {"ap50", "map", "voc07", "per_class", "images", "proposal_recall", "failures"}
    assert scores["per_class"].keys() == set(CLASSES)
    assert scores["images"] == 6
    assert scores["ap50"] > 0.6


def test_predict_writes_pictures_and_json(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, bad = data / "JPEGImages" / "test1.png", tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    command = ["predict", str(trained), str(image), str(bad), "--out", str(tmp_path / "pictures"), "--json"]
    assert run(command) == 1
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    content = json.loads(line)
    assert content["source"] == str(image)
    assert content["size"] == [96, 112]
    assert {item["label"] for item in content["objects"]} <= set(CLASSES)
    assert content["objects"]
    assert load_image(content["files"]["picture"]).size == (112, 96)
    assert "bad.png" in err
    model = sppnet.load(trained)
    assert isinstance(model, sppnet.Detector)
    (result,) = model.predict(image)
    assert result.to_dict() | {"files": content["files"]} == content


def test_evaluate_writes_curves_and_mosaics(trained: Path, data: Path, tmp_path: Path) -> None:
    assert run(["evaluate", str(trained), str(data), "--pictures", str(tmp_path / "pictures")]) == 0
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"pr-curves.png", "best.jpg", "worst.jpg"} <= names


def test_evaluate_reports_the_loss_of_svd_and_bfloat16(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(trained), str(data), "--svd", "32,16", "--head-dtype", "bfloat16", "--json"]
    assert run(command) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["exact"]["ap50"] > 0.6
    assert scores["loss_ap50"] == pytest.approx(scores["exact"]["ap50"] - scores["ap50"])


def test_rcnn_trains_and_evaluates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_voc(tmp_path / "data", 3, 2)
    small = ["--proposals", "grid", "--windows", "12", "--hidden", "32,32", "--levels", "2,1", "--epochs", "1"]
    command = ["train", "detect", str(data), "--method", "rcnn", "--backbone", "resnet18", "--weights", "none"]
    assert run([*command, "--mirror", "false", "--steps", "5", "--out", str(tmp_path / "run"), *small]) == 0
    assert run(["evaluate", str(tmp_path / "run"), str(data), "--split", "test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 2


def test_weights_depend_on_the_seed(data: Path, tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train_detector(data, tmp_path / name, replace(TINY, cache=str(tmp_path / "cache"), seed=seed)).finished
        states.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["fc.fc6.weight"], states[2]["fc.fc6.weight"])


@pytest.mark.parametrize(
    "values", [{}, {"scorer": "softmax"}, {"method": "fast", "levels": (6, 3, 2, 1), "steps": 100}]
)
def test_starts_from_the_weights_of_another_run(values: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """With a learning rate of 0, the trained layers stay as they are."""
    options = replace(TINY, cache=str(tmp_path / "cache"), **values)
    first = train_detector(data, tmp_path / "first", options)
    options = replace(options, lr=0.0, init=str(first.run), ema=0.5, accumulate=2, warmup_epochs=0.5)
    second = train_detector(data, tmp_path / "second", options)
    before, after = (load_file(run / "model.safetensors") for run in (first.run, second.run))
    trained = ("fc.", "norm") if not values else ("fc.", "norm", "score.", "offsets.", "encoder.")
    for name in before:
        if name.startswith(trained):
            torch.testing.assert_close(after[name], before[name])
    files = {path.name for path in second.run.iterdir()}
    assert files == {"metrics.csv", "metrics.jsonl", "model.safetensors", "options.json", "run.json"}
    modified = (second.run / "model.safetensors").stat().st_mtime_ns
    again = train_detector(data, tmp_path / "second", options, resume=True)
    assert again.scores == second.scores
    assert "fine-tuning" not in again.stages
    assert (second.run / "model.safetensors").stat().st_mtime_ns == modified


def test_validation_scores_are_those_of_the_evaluation(data: Path, tmp_path: Path) -> None:
    options = replace(TINY, cache=str(tmp_path / "cache"))
    plain = train_detector(data, tmp_path / "plain", options, val="none")
    assert plain.scores == {}
    assert plain.stages.keys() == {"proposals", "features", "fine-tuning", "SVMs", "box regression"}
    other = write_voc(tmp_path / "other", 1, 4)
    for name, val in (("split", "test"), ("data set", str(other))):
        result = train_detector(data, tmp_path / name, options, val=val)
        model = sppnet.load(result.run)
        assert isinstance(model, sppnet.Detector)
        report = sppnet.evaluate_detector(model, data if val == "test" else other, split="test")
        assert result.scores == {"ap50": report.scores.ap50, "map": report.scores.map}
        assert result.stages.keys() - plain.stages.keys() == {"validation"}
        assert result.seconds >= sum(result.stages.values())


def test_resuming_does_not_depend_on_how_the_path_is_typed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(TINY, cache=str(tmp_path / "cache"))
    train_detector(data, tmp_path / "run", options)
    monkeypatch.chdir(data.parent)
    (tmp_path / "link").symlink_to(data)
    for typed in (Path(data.name), Path("..") / data.parent.name / data.name, tmp_path / "link"):
        assert train_detector(typed, tmp_path / "run", options, resume=True).finished


def test_resuming_with_changed_data_is_an_error(tmp_path: Path) -> None:
    data = write_voc(tmp_path / "data", 3, 1)
    train_detector(data, tmp_path / "run", TINY)
    annotation, image = data / "Annotations" / "train1.xml", data / "JPEGImages" / "train1.png"
    text, modified = annotation.read_text(), image.stat().st_mtime_ns
    moved, renamed = text.replace("<xmin>", "<xmin>1", 1), text.replace("disc", "square")
    for content, time in ((moved, modified), (renamed, modified), (text, 0)):
        annotation.write_text(content)
        os.utime(image, ns=(time, time))
        with pytest.raises(ValueError, match=r"images: expected '3 images, .*', as when the training in .* started"):
            train_detector(data, tmp_path / "run", TINY, resume=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_and_resumed_training_matches_an_uninterrupted_one(data: Path, trained: Path, tmp_path: Path) -> None:
    arguments = ["train", "detect", str(data), "--out", str(tmp_path / "run"), *QUICK]
    assert stop_after_checkpoint(arguments).returncode == -signal.SIGKILL
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert run([*arguments, "--resume"]) == 0
    resumed, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", trained))
    for name, tensor in expected.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-3, atol=1e-4)


def test_errors_name_the_option_or_the_data(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def output(*words: str) -> str:
        code = run(["train", "detect", "--out", str(tmp_path / "none"), *QUICK, *words])
        err = capsys.readouterr().err
        return f"{code} {err}"

    assert output(str(data), "--split", "val").startswith("2 sppnet: ")
    assert "train" in output(str(data), "--split", "val")
    assert "selective-search" in output(str(data), "--proposals", "magic")
    for option, value in (("--hidden", "0"), ("--scales", "688x2")):
        with pytest.raises(SystemExit, match="2"):
            output(str(data), option, value)
        assert f"{option}: expected comma-separated numbers of at least 1" in capsys.readouterr().err
    empty = write_voc(tmp_path / "empty", 1, 1)
    assert "data: expected an object that is not difficult, got none in 1 images" in output(str(empty))


def test_undecodable_images_are_reported_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_voc(tmp_path / "data", 6, 3)
    (data / "JPEGImages" / "train2.png").write_bytes((data / "JPEGImages" / "train2.png").read_bytes()[:400])
    (data / "JPEGImages" / "test1.png").write_bytes((data / "JPEGImages" / "test1.png").read_bytes()[:400])
    command = ["train", "detect", str(data), "--out", str(tmp_path / "run"), *SMALL, "--epochs", "1", "--steps", "2"]
    assert run(command) == 0
    assert "train2.png" in capsys.readouterr().err
    assert run(["evaluate", str(tmp_path / "run"), str(data), "--split", "test"]) == 1
    assert "test1.png" in capsys.readouterr().err


def test_config_has_the_values_of_the_options() -> None:
    options = DetectOptions(levels=(3, 1), scales=(480, 688), hidden=(16,), windows=7, reduce="avg", proposals="grid")
    config = detector_config(options, ("a", "b"))
    assert config == DetectorConfig(
        ("a", "b"), stage=3, levels=(3, 1), scales=(480, 688), reduce="avg", hidden=(16,), regression="pool",
        proposals="grid", windows=7,
    )  # fmt: skip
    assert detector_config(replace(options, regression=False), ("a",)).regression == "none"
    fast = detector_config(DetectOptions(method="fast"), ("a", "b"))
    values = (fast.method, fast.levels, fast.rule, fast.scorer, fast.regression)
    assert values == ("fast", (7,), "roi_pool", "softmax", "fc")


def test_backbone_is_cut_off_at_stride_16() -> None:
    backbone = create_detector(detector_config(DetectOptions(), CLASSES)).encoder.backbone
    assert (backbone.name, backbone.stage, backbone.geometry.stride) == ("tf_efficientnet_lite0", 3, (16, 16))
    assert detector_config(DetectOptions(stage=2), CLASSES).stage == 2
    assert detector_config(DetectOptions(backbone="zf5"), CLASSES).stage is None


@pytest.mark.parametrize(
    ("name", "stride", "stage"),
    [
        ("resnet18", 16, 3),
        ("tf_efficientnet_lite0", 16, 3),
        ("tf_efficientnet_lite0", 31, 3),
        ("tf_efficientnet_lite0", 32, 4),
        ("resnet18", 2, 0),
        ("zf5", 16, None),
    ],
)
def test_stage_of_stride_selects_the_last_stage(name: str, stride: int, stage: int | None) -> None:
    assert stage_of_stride(name, stride) == stage


def test_stage_of_stride_rejects_unknown_networks_and_too_fine_strides() -> None:
    with pytest.raises(ValueError, match=r"backbone: expected a timm network .*, got 'resnet81'; did you mean "):
        stage_of_stride("resnet81", 16)
    with pytest.raises(ValueError, match=r"stride: expected at least 2 \(the finest map of resnet18\), got 1"):
        stage_of_stride("resnet18", 1)


def test_validates_on_the_validation_split_or_a_tenth_of_the_images(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sppnet")
    options = replace(TINY, cache=str(tmp_path / "cache"))
    held_out = train_detector(data, tmp_path / "held-out", options)
    assert held_out.scores.keys() == {"ap50", "map"}
    text = (
        "no validation split: validating on 1 of 12 images, chosen with seed 0; use --val none to train on all images"
    )
    assert text in caplog.messages
    assert train_detector(data, tmp_path / "held-out", options, resume=True).scores == held_out.scores
    assert train_detector(data, tmp_path / "none", options, val="none").scores == {}
    weights = [load_file(tmp_path / name / "model.safetensors")["score.weight"] for name in ("held-out", "none")]
    assert not torch.equal(*weights)
    caplog.clear()
    root = Path(shutil.copytree(data, tmp_path / "data"))
    lists = root / "ImageSets/Main"
    (lists / "test.txt").rename(lists / "valid.txt")
    training = train_detector(root, tmp_path / "split", options)
    model = sppnet.load(training.run)
    assert isinstance(model, sppnet.Detector)
    scores = sppnet.evaluate_detector(model, root, split="valid").scores
    assert training.scores == {"ap50": scores.ap50, "map": scores.map}
    (lists / "valid.txt").write_text("test0\n")  # without an object
    assert train_detector(root, tmp_path / "empty", options).scores == {}
    with pytest.raises(ValueError, match="val: expected a readable image with an object that is not difficult, got no"):
        train_detector(root, tmp_path / "refused", options, val="valid")
    assert not (tmp_path / "refused").exists()
    text = "no validation: no readable image of the split valid has an object that is scored"
    assert text in caplog.messages


def test_reports_stated_classes_without_an_object(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"data/images/{name}.jpg", 60, 50)
    document = coco_document(categories=[{"id": number, "name": name} for number, name in enumerate(("gnu", "cat"))])
    for entry in document["images"]:
        entry |= {"height": 50, "width": 60}
    box = {"image_id": 7, "category_id": 1, "bbox": [5, 5, 40, 30]}
    crowd = {"image_id": 3, "category_id": 0, "bbox": [5, 5, 40, 30], "iscrowd": 1}
    write_json(tmp_path / "data/annotations/train.json", document | {"annotations": [box, crowd]})
    training = train_detector(tmp_path / "data", tmp_path / "run", TINY)
    text = f"{tmp_path / 'data'}: no object of gnu; training on this split cannot learn this class"
    assert text in training.problems
    assert text in caplog.messages
