"""Training on real files: what it writes, how it resumes, what it does with bad input."""

import json
import os
import shutil
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
from sppnet.classify.train import train_classifier
from sppnet.registry import load_classifier
from sppnet.training.options import TrainOptions
from tests.helpers.images import write_classes

QUICK = TrainOptions(sizes="32,48", epochs=3, batch=4, lr=1e-3, head="fc", levels=(1,))  # fc has dropout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_classes(root / "train", 5)
    write_classes(root / "val", 2)
    return root


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    training = train_classifier(data, out, QUICK)
    assert training.finished
    assert training.scores["validation images"].images == 6
    return out


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_time(run: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in metrics(run)]


def test_a_run_folder_holds_model_options_and_metrics(undisturbed: Path) -> None:
    model = load_classifier(undisturbed)
    assert model.config.classes == ("blue", "green", "red")
    assert str(model.resize) == "shorter-side:55"
    assert [line["size"] for line in metrics(undisturbed)] == [32, 48, 32]
    assert not [path for path in undisturbed.rglob("*") if path.suffix in (".pt", ".pth", ".pkl", ".ckpt", ".part")]


def start(data: Path, out: Path, *extra: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "sppnet", "train", "classify", str(data), "--out", str(out)]
    command += [
        "--sizes",
        "32,48",
        "--epochs",
        "3",
        "--batch",
        "4",
        "--lr",
        "1e-3",
        "--head",
        "fc",
        "--levels",
        "1",
        *extra,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE)


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    limit = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_and_resumed_run_has_the_weights_of_an_undisturbed_one(
    number: signal.Signals, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(data, out)
    wait_for(out / "metrics.jsonl", process)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert not (out / "model.safetensors").exists()
    if number == signal.SIGINT:
        assert process.returncode == 1
        assert "--resume goes on" in told
    assert train_classifier(data, out, QUICK, resume=True).finished
    expected, found = load_file(undisturbed / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert without_time(out) == without_time(undisturbed)


def test_a_finished_run_resumed_stays_as_it_is(data: Path, undisturbed: Path) -> None:
    before = load_file(undisturbed / "model.safetensors")
    assert train_classifier(data, undisturbed, QUICK, resume=True).finished
    after = load_file(undisturbed / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_folder_is_not_overwritten(data: Path, undisturbed: Path) -> None:
    with pytest.raises(ValueError, match="holds a training already; --resume goes on with it"):
        train_classifier(data, undisturbed, QUICK)


def test_a_resumed_run_keeps_its_options(data: Path, undisturbed: Path) -> None:
    with pytest.raises(ValueError, match="begun with batch=4, now it is 8"):
        train_classifier(data, undisturbed, replace(QUICK, batch=8), resume=True)


def test_a_run_of_a_version_with_fewer_options_is_resumed(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = shutil.copytree(undisturbed, tmp_path / "run")
    stored = json.loads((out / "options.json").read_text())
    del stored["deterministic"], stored["batch_pixels"]
    (out / "options.json").write_text(json.dumps(stored))
    assert train_classifier(data, out, QUICK, resume=True).finished
    (out / "options.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="begun with deterministic=False, now it is True"):
        train_classifier(data, out, replace(QUICK, deterministic=True), resume=True)


@pytest.mark.parametrize("head", ["svm", "linear"])
def test_a_frozen_backbone_keeps_its_weights_and_its_vectors(head: str, data: Path, tmp_path: Path) -> None:
    options = TrainOptions(freeze_backbone=True, head=head, levels=(2, 1), epochs=15, cache=str(tmp_path / "cache"))  # type: ignore[arg-type]
    training = train_classifier(data, tmp_path / "run", options)
    assert training.scores["training images"].top1 > 0.9
    model = load_classifier(tmp_path / "run")
    embedded = sppnet.imagenet_classifier().backbone.state_dict()
    assert all(torch.equal(tensor, embedded[name]) for name, tensor in model.backbone.state_dict().items())
    shards = sorted((tmp_path / "cache").rglob("*.safetensors"))
    written = [shard.stat().st_mtime_ns for shard in shards]
    assert len(shards) == 2
    train_classifier(data, tmp_path / "again", options)
    assert [shard.stat().st_mtime_ns for shard in shards] == written
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def test_the_paper_head_and_native_sizes_train(data: Path, tmp_path: Path) -> None:
    options = TrainOptions(head="fc", sizes="native", epochs=1, batch=6, levels=(1,), optimizer="sgd", schedule="step")
    training = train_classifier(data / "train", tmp_path / "run", options)
    assert training.finished
    assert load_classifier(tmp_path / "run").config.resize == "native"
    assert metrics(tmp_path / "run")[0]["size"] is None


def test_a_file_that_cannot_be_decoded_is_named_and_the_rest_trains(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", 3)
    (root / "red" / "0.png").write_bytes((root / "red" / "0.png").read_bytes()[:200])
    (root / "red" / "notes.txt").write_text("not an image")
    frozen = TrainOptions(freeze_backbone=True, levels=(1,))
    for name, options in (("a", frozen), ("b", TrainOptions(sizes="32", epochs=2, batch=4))):
        training = train_classifier(root, tmp_path / name, options)
        assert [Path(failure.path).name for failure in training.failures] == ["0.png"]
        assert [path.name for path in training.skipped] == ["notes.txt"]
        assert training.finished


def test_tensorboard_events_are_written(data: Path, tmp_path: Path) -> None:
    options = TrainOptions(freeze_backbone=True, head="linear", levels=(1,), epochs=1, tensorboard=True)
    train_classifier(data / "train", tmp_path / "run", options)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_a_network_of_another_kind_is_not_resumed(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = replace(QUICK, head="linear", epochs=1)
    train_classifier(data, out, options)
    (out / "checkpoint.safetensors").write_bytes((undisturbed / "checkpoint.safetensors").read_bytes())
    with pytest.raises(ValueError, match="belongs to another network"):
        train_classifier(data, out, options, resume=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adam"}, "optimizer: expected one of adamw, sgd; got 'adam'; did you mean 'adamw'"),
        ({"svm_c": 0.0}, "svm_c: expected a penalty above 0"),
        ({"lr": -1.0}, "lr: expected a number of at least 0; got -1.0"),
        ({"seed": -1}, "seed: expected 0..4294967295; got -1"),
        ({"workers": -1}, "workers: expected at least 0"),
        ({"epochs": 0}, "epochs: expected at least 1; got 0"),
        ({"head": "svm"}, "needs freeze_backbone"),
        ({"head": "mlp"}, "head: expected one of linear, fc, svm"),
        ({"sizes": "big"}, "sizes: expected 224"),
        ({"resize": "crop"}, "center-crop"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_named_before_anything_is_done(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOptions(**values)  # type: ignore[arg-type]


def test_sizes_that_the_network_does_not_take_leave_no_run(data: Path, tmp_path: Path) -> None:
    for options, message in (
        (TrainOptions(backbone="zf5", sizes="224,20", levels=(1,)), "zf5 takes sides of at least 31 pixels; got 20"),
        (TrainOptions(sizes="320", levels=(6,), rule="sliding"), "map side of 10 into level 6"),
    ):
        with pytest.raises(ValueError, match=message):
            train_classifier(data, tmp_path / "run", options)
        assert not (tmp_path / "run").exists()


def test_data_without_a_readable_image_is_refused_and_the_files_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "broken.png").write_bytes(b"<html>")
    for number, options in enumerate(
        (TrainOptions(freeze_backbone=True), TrainOptions(sizes="native"), TrainOptions(sizes="32", epochs=1))
    ):
        with pytest.raises(ValueError, match=r"broken\.png: not an image"):
            train_classifier(tmp_path / "data", tmp_path / str(number), options)
        assert not (tmp_path / str(number) / "model.safetensors").exists()


def test_a_training_that_diverges_stops_and_says_so(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the loss is .* in epoch \d, batch \d: lower the learning rate"):
        train_classifier(data, tmp_path / "run", replace(QUICK, lr=1e30, optimizer="sgd"))


def test_a_resumed_run_keeps_its_images(data: Path, tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", 2)
    options = TrainOptions(freeze_backbone=True, levels=(1,))
    train_classifier(root, tmp_path / "run", options)
    (root / "red" / "1.png").rename(root / "red" / "7.png")
    with pytest.raises(ValueError, match="begun with images='6 images, "):
        train_classifier(root, tmp_path / "run", options, resume=True)
