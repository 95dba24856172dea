"""Detectors from a data set to answers, through the commands as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time
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


def test_spp_net_learns_objects_from_twelve_images(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(trained), str(data), "--split", "test", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores.keys() >= {"ap50", "map", "voc07", "per_class", "images", "proposal_recall", "failures"}
    assert scores["per_class"].keys() == set(CLASSES)
    assert scores["images"] == 6
    assert scores["ap50"] > 0.6


def test_a_prediction_is_a_picture_and_json(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, bad = data / "JPEGImages" / "test1.png", tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    command = ["predict", str(trained), str(image), str(bad), "--out", str(tmp_path / "pictures"), "--json"]
    assert run(command) == 1
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    answer = json.loads(line)
    assert answer["source"] == str(image)
    assert answer["size"] == [96, 112]
    assert {one["label"] for one in answer["objects"]} <= set(CLASSES)
    assert answer["objects"]
    assert load_image(answer["picture"]).size == (112, 96)
    assert "bad.png" in err
    model = sppnet.load(trained)
    assert isinstance(model, sppnet.Detector)
    (found,) = model.predict(image)
    assert found.scores[0] == pytest.approx(answer["objects"][0]["score"], rel=1e-4, abs=1e-4)


def test_evaluation_writes_curves_and_mosaics(trained: Path, data: Path, tmp_path: Path) -> None:
    assert run(["evaluate", str(trained), str(data), "--pictures", str(tmp_path / "pictures")]) == 0
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"pr-curves.png", "best.jpg", "worst.jpg"} <= names


def test_svd_and_bfloat16_tell_what_they_cost(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(trained), str(data), "--svd", "32,16", "--head", "bfloat16", "--json"]
    assert run(command) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["exact"]["ap50"] > 0.6
    assert scores["loss_ap50"] == pytest.approx(scores["exact"]["ap50"] - scores["ap50"])


def test_options_of_the_other_task_are_refused(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(trained), str(data), "--views", "10"]) == 2
    assert "views: an option for classifiers" in capsys.readouterr().err
    assert run(["predict", "imagenet", str(data / "JPEGImages"), "--svd", "4,4"]) == 2
    assert "svd: an option for detectors" in capsys.readouterr().err


def test_rcnn_runs_the_network_once_a_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_voc(tmp_path / "data", 3, 2)
    small = ["--proposals", "grid", "--windows", "12", "--hidden", "32,32", "--levels", "2,1", "--epochs", "1"]
    command = ["train", "detect", str(data), "--method", "rcnn", "--backbone", "resnet18", "--weights", "none"]
    assert run([*command, "--mirror", "false", "--steps", "5", "--out", str(tmp_path / "run"), *small]) == 0
    assert run(["evaluate", str(tmp_path / "run"), str(data), "--split", "test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 2


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data: Path, tmp_path: Path) -> None:
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
def test_a_killed_training_goes_on_and_gives_the_undisturbed_weights(data: Path, trained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sppnet", "train", "detect", str(data), "--out", str(tmp_path / "run"), *QUICK]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    until = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert run([*command[3:], "--resume"]) == 0
    again, undisturbed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", trained))
    for name, tensor in undisturbed.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-3, atol=1e-4)


def test_bad_data_is_told_by_name(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        code = run(["train", "detect", "--out", str(tmp_path / "none"), *QUICK, *words])
        err = capsys.readouterr().err
        return f"{code} {err}"

    assert said(str(data), "--split", "val").startswith("2 sppnet: ")
    assert "train" in said(str(data), "--split", "val")
    assert "selective-search" in said(str(data), "--proposals", "magic")
    assert "hidden: expected numbers of at least 1" in said(str(data), "--hidden", "0")
    assert "scales: expected numbers of at least 1" in said(str(data), "--scales", "688x2")
    empty = write_voc(tmp_path / "empty", 1, 1)
    assert "has no object" in said(str(empty))


def test_images_that_do_not_decode_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_voc(tmp_path / "data", 6, 3)
    (data / "JPEGImages" / "train2.png").write_bytes((data / "JPEGImages" / "train2.png").read_bytes()[:400])
    (data / "JPEGImages" / "test1.png").write_bytes((data / "JPEGImages" / "test1.png").read_bytes()[:400])
    command = ["train", "detect", str(data), "--out", str(tmp_path / "run"), *SMALL, "--epochs", "1", "--steps", "2"]
    assert run(command) == 0
    assert "train2.png" in capsys.readouterr().err
    assert run(["evaluate", str(tmp_path / "run"), str(data), "--split", "test"]) == 1
    assert "test1.png" in capsys.readouterr().err


def test_a_comparison_prints_the_papers_tables(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare-detectors", str(data), "--test-split", "test", "--out", str(tmp_path), "--images", "3"]
    small = ["--windows", "20", "--proposals", "grid", "--hidden", "16,16", "--levels", "2,1", "--epochs", "1"]
    assert run([*command, *small, "--scales", "96", "--steps", "2", "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("ft fc7 bb", "[59.2]", "R-CNN", "speed-up", "[102]"))
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["columns"]["SPP, 5 scales"]["ap50"].keys() == {"pool5", "fc6", "ft fc6", "ft fc7", "ft fc7 bb"}
    assert len(content["columns"]["R-CNN"]["ap50"]["fc6"]) == 2
    assert content["columns"]["R-CNN"]["seconds"]["speed-up"] == 1
