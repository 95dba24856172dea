"""Tests of detector training, evaluation and prediction through the command line."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sppnet
from sppnet.cli.main import run
from sppnet.data.images import load_image
from sppnet.detect.options import DetectOptions
from sppnet.detect.train import train_detector
from tests.helpers.detection_data import CLASSES, write_voc
from tests.helpers.killed_training import stop_after_checkpoint

SMALL = ["--scales", "160", "--proposals", "grid", "--windows", "300", "--hidden", "64,64", "--levels", "3,2,1"]
QUICK = [*SMALL, "--epochs", "4", "--steps", "40"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc") / "data", 12, 6)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("spp") / "run"
    assert run(["train", "detect", str(data), "--method", "spp", "--split", "train", "--out", str(out), *QUICK]) == 0
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
    assert load_image(content["picture"]).size == (112, 96)
    assert "bad.png" in err
    model = sppnet.load(trained)
    assert isinstance(model, sppnet.Detector)
    (detections,) = model.predict(image)
    assert detections.scores[0] == pytest.approx(content["objects"][0]["score"], rel=1e-4, abs=1e-4)


def test_evaluate_writes_curves_and_mosaics(trained: Path, data: Path, tmp_path: Path) -> None:
    assert run(["evaluate", str(trained), str(data), "--pictures", str(tmp_path / "pictures")]) == 0
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"pr-curves.png", "best.jpg", "worst.jpg"} <= names


def test_evaluate_reports_the_loss_of_svd_and_bfloat16(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(trained), str(data), "--svd", "32,16", "--head", "bfloat16", "--json"]
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
    quick = DetectOptions(
        scales=(96,), proposals="grid", windows=60, hidden=(16, 16), levels=(2, 1), epochs=1, steps=3,
        cache=str(tmp_path / "cache"),
    )  # fmt: skip
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train_detector(data, tmp_path / name, replace(quick, seed=seed)).finished
        states.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["fc.fc6.weight"], states[2]["fc.fc6.weight"])


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
    assert "hidden: expected comma-separated numbers of at least 1" in output(str(data), "--hidden", "0")
    assert "scales: expected comma-separated numbers of at least 1" in output(str(data), "--scales", "688x2")
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
