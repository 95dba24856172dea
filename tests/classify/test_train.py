"""Training on image files: written files, resuming, and invalid options and images."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sppnet
from sppnet.classify.options import ClassifyOptions
from sppnet.classify.train import train_classifier
from sppnet.registry import load_classifier
from tests.helpers.images import write_classes
from tests.helpers.killed_training import stop_after_checkpoint

QUICK = ClassifyOptions(sizes="32,48", epochs=3, batch=4, lr=1e-3, head="fc", levels=(1,))  # fc has dropout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_classes(root / "train", 5)
    write_classes(root / "val", 2)
    return root


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    training = train_classifier(data, out, QUICK)
    assert training.finished
    assert training.accuracy["validation images"].images == 6
    assert set(training.scores) == {"top1", "mean_per_class_accuracy"}
    return out


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_time(run: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in metrics(run)]


def test_run_folder_contains_model_and_metrics(uninterrupted: Path) -> None:
    model = load_classifier(uninterrupted)
    assert model.config.classes == ("blue", "green", "red")
    assert str(model.resize) == "shorter-side:55"
    assert [line["size"] for line in metrics(uninterrupted)] == [32, 48, 32]
    assert not [path for path in uninterrupted.rglob("*") if path.suffix in (".pt", ".pth", ".pkl", ".ckpt", ".part")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_resumed_training_gives_the_same_weights(
    number: signal.Signals, data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train = ["train", "classify", str(data), "--out", str(out), "--sizes", "32,48", "--epochs", "3", "--batch", "4"]
    train += ["--lr", "1e-3", "--head", "fc", "--levels", "1"]  # the same options as QUICK
    process = stop_after_checkpoint(train, number, (1, 2))
    assert process.returncode == (130 if number == signal.SIGINT else -number), process.stderr
    assert ("with --resume to continue" in process.stderr) == (number == signal.SIGINT)
    assert not (out / "model.safetensors").exists()
    assert len(metrics(out)) == 1
    assert train_classifier(data, out, QUICK, resume=True).finished
    expected, resumed = load_file(uninterrupted / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert without_time(out) == without_time(uninterrupted)


def test_resuming_a_finished_training_only_validates_again(data: Path, uninterrupted: Path) -> None:
    before = load_file(uninterrupted / "model.safetensors")
    training = train_classifier(data, uninterrupted, QUICK, resume=True)
    assert training.finished
    last = metrics(uninterrupted)[-1]
    assert training.scores == {name: last[f"val_{name}"] for name in ("top1", "mean_per_class_accuracy")}
    after = load_file(uninterrupted / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("head", ["svm", "linear"])
def test_frozen_backbone_keeps_its_weights_and_reuses_vectors(head: str, data: Path, tmp_path: Path) -> None:
    options = ClassifyOptions(freeze_backbone=True, head=head, levels=(2, 1), epochs=15, cache=str(tmp_path / "cache"))  # type: ignore[arg-type]
    random_state = torch.get_rng_state()
    training = train_classifier(data, tmp_path / "run", options)
    assert training.accuracy["training images"].top1 > 0.9
    assert training.scores["top1"] == training.accuracy["validation images"].top1
    assert torch.equal(torch.get_rng_state(), random_state)
    model = load_classifier(tmp_path / "run")
    embedded = sppnet.imagenet_classifier().backbone.state_dict()
    assert all(torch.equal(tensor, embedded[name]) for name, tensor in model.backbone.state_dict().items())
    shards = sorted((tmp_path / "cache").rglob("*.safetensors"))
    written = [shard.stat().st_mtime_ns for shard in shards]
    assert len(shards) == 2
    train_classifier(data, tmp_path / "again", options)
    assert [shard.stat().st_mtime_ns for shard in shards] == written
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def test_trains_the_paper_head_at_native_sizes(data: Path, tmp_path: Path) -> None:
    options = ClassifyOptions(
        head="fc", sizes="native", epochs=1, batch=6, levels=(1,), optimizer="sgd", schedule="step"
    )
    training = train_classifier(data / "train", tmp_path / "run", options)
    assert training.finished
    assert load_classifier(tmp_path / "run").config.resize == "native"
    assert metrics(tmp_path / "run")[0]["size"] is None


def test_unreadable_images_are_skipped_and_reported(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", 3)
    (root / "red" / "0.png").write_bytes((root / "red" / "0.png").read_bytes()[:200])
    (root / "red" / "notes.txt").write_text("not an image")
    frozen = ClassifyOptions(freeze_backbone=True, levels=(1,))
    for name, options in (("a", frozen), ("b", ClassifyOptions(sizes="65", epochs=2, batch=4))):
        training = train_classifier(root, tmp_path / name, options)
        assert [Path(failure.path).name for failure in training.failures] == ["0.png"]
        assert training.problems == (f"{root / 'red' / 'notes.txt'}: skipped, not an image by its extension",)
        assert training.finished


def test_rejects_unsupported_sizes_before_writing_files(data: Path, tmp_path: Path) -> None:
    for options, message in (
        (
            ClassifyOptions(backbone="zf5", sizes="224,20", levels=(1,)),
            "sizes: expected at least 31 pixels for zf5, .* 1 x 1 bins of the largest level, got 20",
        ),
        (
            ClassifyOptions(sizes="8"),
            "sizes: expected at least 65 pixels for tf_efficientnet_lite0, .* 3 x 3 .*, got 8",
        ),
        (ClassifyOptions(sizes="8", levels=(1,)), "sizes: expected at least 32 pixels .*, got 8"),
        (
            ClassifyOptions(sizes="32,64", levels=(1,), batch=1),
            "batch: expected batches of at least 2 images, .* got 1 for 15",
        ),
        (ClassifyOptions(sizes="320", levels=(6,), rule="sliding"), "map side of 10 into 6 bins, got 'sliding'"),
    ):
        with pytest.raises(ValueError, match=message):
            train_classifier(data, tmp_path / "run", options)
        assert not (tmp_path / "run").exists()


def test_rejects_data_without_readable_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "broken.png").write_bytes(b"<html>")
    for number, options in enumerate(
        (ClassifyOptions(freeze_backbone=True), ClassifyOptions(sizes="native"), ClassifyOptions(sizes="96", epochs=1))
    ):
        with pytest.raises(ValueError, match=r"broken\.png: not an image"):
            train_classifier(tmp_path / "data", tmp_path / str(number), options)
        assert not (tmp_path / str(number) / "model.safetensors").exists()


def test_rejects_changed_images_when_resuming(data: Path, tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", 2)
    options = ClassifyOptions(freeze_backbone=True, levels=(1,))
    train_classifier(root, tmp_path / "run", options)
    (root / "red" / "1.png").rename(root / "red" / "7.png")
    with pytest.raises(ValueError, match="images: expected '6 images, "):
        train_classifier(root, tmp_path / "run", options, resume=True)


def test_trains_on_the_chosen_split_and_validates_on_another_folder_of_splits(data: Path, tmp_path: Path) -> None:
    options = ClassifyOptions(freeze_backbone=True, levels=(1,), cache=str(tmp_path / "cache"))
    training = train_classifier(data, tmp_path / "a", options, split="val")
    assert training.accuracy["training images"].images == 6
    assert training.scores == {}, "the training images are not validation images"
    training = train_classifier(data / "train", tmp_path / "b", options, val=data)
    assert [training.accuracy[f"{name} images"].images for name in ("training", "validation")] == [15, 6]
    write_classes(tmp_path / "other" / "train", 1)
    with pytest.raises(ValueError, match=r"split: expected one of train for .*other, got None"):
        train_classifier(data, tmp_path / "c", options, val=tmp_path / "other")
    write_classes(tmp_path / "other" / "test", 3)
    training = train_classifier(data, tmp_path / "c", options, val=tmp_path / "other")
    assert training.accuracy["validation images"].images == 9


def test_names_of_splits_and_classes_are_suggested(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 'trian'; did you mean train"):
        train_classifier(data, tmp_path / "run", split="trian")
    root = write_classes(tmp_path / "val", 1)
    (root / "green").rename(root / "gren")
    with pytest.raises(ValueError, match="that lack gren; did you mean green"):
        train_classifier(data, tmp_path / "run", val=root)


@pytest.mark.parametrize(
    ("values", "advised"),
    [({"sizes": "65"}, True), ({"sizes": "65", "weights": "none"}, False), ({"freeze_backbone": True}, False)],
)
def test_advises_a_frozen_backbone_for_few_images(
    values: dict[str, Any], advised: bool, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sppnet")
    options = ClassifyOptions(epochs=1, **values)
    for resume in (False, True):
        caplog.clear()
        train_classifier(data / "train", tmp_path / "run", options, resume=resume)
        text = "with 5 images per class, --freeze-backbone is usually more accurate"
        assert any(message.startswith(text) for message in caplog.messages) == (advised and not resume)


def test_cache_has_the_same_layout_in_the_run_and_elsewhere(data: Path, tmp_path: Path) -> None:
    options = ClassifyOptions(freeze_backbone=True, levels=(1,))
    train_classifier(data, tmp_path / "run", options)
    train_classifier(data, tmp_path / "other", replace(options, cache=str(tmp_path / "cache")))
    files = [
        sorted(path.relative_to(cache) for path in cache.rglob("*"))
        for cache in (tmp_path / "run" / "cache", tmp_path / "cache")
    ]
    assert files[0] == files[1]
    assert {path.parts[0] for path in files[0]} == {"vectors"}
