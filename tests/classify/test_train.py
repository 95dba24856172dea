"""Training on image files: written files, resuming, and invalid options and images."""

import json
import shutil
import signal
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

import sppnet
from sppnet.classify.options import ClassifyOptions, ClassWeights
from sppnet.classify.train import train_classifier
from sppnet.registry import load_classifier
from tests.helpers.images import write_classes
from tests.helpers.killed_training import stop_after_checkpoint

QUICK = ClassifyOptions(  # fc has dropout
    train_stages="all", sizes="32,48", epochs=3, batch=4, lr=1e-3, head="fc", levels=(1,)
)


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


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_and_resumed_training_gives_the_same_weights(
    number: signal.Signals, data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train = ["train", "classify", str(data), "--out", str(out), "--sizes", "32,48", "--epochs", "3", "--batch", "4"]
    train += ["--train-stages", "all", "--lr", "1e-3", "--head", "fc", "--levels", "1"]  # the same options as QUICK
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
    files = {path: path.stat().st_mtime_ns for path in uninterrupted.iterdir() if path.name != "options.json"}
    training = train_classifier(data, uninterrupted, QUICK, resume=True)
    assert training.finished
    best = max(metrics(uninterrupted), key=itemgetter("val_top1"))
    assert training.scores == {name: best[f"val_{name}"] for name in ("top1", "mean_per_class_accuracy")}
    assert files == {path: path.stat().st_mtime_ns for path in uninterrupted.iterdir() if path.name != "options.json"}
    message = (
        r"epochs: expected 3, as when the training in .* started, got 4; resume .*, or start another run with --init"
    )
    with pytest.raises(ValueError, match=message):
        train_classifier(data, uninterrupted, replace(QUICK, epochs=4), resume=True)


@pytest.mark.parametrize("stages", ["0", "2"])
def test_frozen_stages_keep_their_weights_and_statistics(stages: str, data: Path, tmp_path: Path) -> None:
    options = replace(QUICK, train_stages=stages, epochs=1, ema=0.9, accumulate=2, cache=str(tmp_path / "cache"))
    train_classifier(data, tmp_path / "run", options)
    embedded, changed = sppnet.imagenet_classifier().backbone.state_dict(), set()
    for name, tensor in load_classifier(tmp_path / "run").backbone.state_dict().items():
        if not torch.equal(tensor, embedded[name]):
            changed.add(name.removeprefix("network."))
    trained = ("blocks.3", "blocks.4", "blocks.5", "blocks.6", "conv_head", "bn2") if stages == "2" else ()
    assert all(name.startswith(trained) for name in changed)
    assert {name.rpartition(".")[2] for name in changed} >= ({"weight", "bias", "running_mean"} if trained else set())


def test_starts_from_another_run_with_other_classes(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "data" / split / "red")
    options = replace(QUICK, epochs=1, lr=0.0, init=str(uninterrupted))
    train_classifier(tmp_path / "data", tmp_path / "run", options)
    before, after = (load_file(run / "model.safetensors") for run in (uninterrupted, tmp_path / "run"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if "running" not in name and "batches" not in name} - same == {
        "head.fc8.weight",
        "head.fc8.bias",
    }
    message = r"init: expected shape \(4096, 2560\) for head.fc6.weight, got shape \(4096, 1280\) in .*uninterrupted"
    with pytest.raises(ValueError, match=message):
        train_classifier(tmp_path / "data", tmp_path / "other", replace(options, levels=((1, 2),), sizes="64"))
    assert not (tmp_path / "other").exists()


def test_rejects_other_classes_when_resuming(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    stored = json.loads((run / "options.json").read_text())
    (run / "options.json").write_text(json.dumps(stored | {"classes": ["blue", "green", "yellow"]}))
    with pytest.raises(ValueError, match=r"classes: expected yellow, as when the training in .* started, got red"):
        train_classifier(data, run, QUICK, resume=True)


def test_class_weights_raise_the_scores_of_a_rare_class(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", 12)
    for file in sorted((root / "red").iterdir())[2:]:
        file.unlink()
    rates = {}
    for weights in get_args(ClassWeights):
        options = ClassifyOptions(
            head="linear", class_weights=weights, epochs=2, lr=1e-4, levels=(1,), cache=str(tmp_path / "cache")
        )
        run = train_classifier(root, tmp_path / weights, options, val="none").run
        results = load_classifier(run).predict(sorted((root / "red").iterdir()))
        rates[weights] = sum(dict(result.top)["red"] for result in results)
    assert rates["balanced"] > rates["none"]


def test_early_stopping_needs_validation_images(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patience: expected validation images to score each epoch, got none; set val"):
        train_classifier(data / "train", tmp_path / "run", replace(QUICK, patience=1), val="none")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("head", ["ridge", "svm", "linear"])
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
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    written = [file.stat().st_mtime_ns for file in files]
    assert len(files) == len({path.read_bytes() for path in data.rglob("*.png")})
    train_classifier(data, tmp_path / "again", options)
    assert [file.stat().st_mtime_ns for file in files] == written
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == files


def test_trains_the_paper_head_at_native_sizes(data: Path, tmp_path: Path) -> None:
    options = ClassifyOptions(
        train_stages="all", head="fc", sizes="native", epochs=1, batch=6, levels=(1,), optimizer="sgd", schedule="step"
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
    for name, options in (("a", frozen), ("b", ClassifyOptions(train_stages="all", sizes="65", epochs=2, batch=4))):
        training = train_classifier(root, tmp_path / name, options)
        assert [Path(failure.path).name for failure in training.failures] == ["0.png"]
        assert training.problems == (f"{root / 'red' / 'notes.txt'}: skipped, not an image by its extension",)
        assert training.finished


def test_rejects_unsupported_sizes_before_writing_files(data: Path, tmp_path: Path) -> None:
    for options, message in (
        (
            ClassifyOptions(train_stages="all", backbone="zf5", sizes="224,20", levels=(1,)),
            "sizes: expected at least 31 pixels for zf5, .* 1 x 1 bins of the largest level, got 20",
        ),
        (
            ClassifyOptions(train_stages="all", sizes="8"),
            "sizes: expected at least 65 pixels for tf_efficientnet_lite0, .* 3 x 3 .*, got 8",
        ),
        (ClassifyOptions(train_stages="all", sizes="8", levels=(1,)), "sizes: expected at least 32 pixels .*, got 8"),
        (
            ClassifyOptions(train_stages="all", sizes="32,64", levels=(1,), batch=1),
            "batch: expected batches of at least 2 images, .* got 1 for 15",
        ),
        (
            ClassifyOptions(train_stages="all", sizes="320", levels=(6,), rule="sliding"),
            "map side of 10 into 6 bins, got 'sliding'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train_classifier(data, tmp_path / "run", options)
        assert not (tmp_path / "run").exists()


def test_rejects_data_without_readable_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "broken.png").write_bytes(b"<html>")
    for number, options in enumerate(
        (
            ClassifyOptions(freeze_backbone=True),
            ClassifyOptions(train_stages="all", sizes="native"),
            ClassifyOptions(train_stages="all", sizes="96", epochs=1),
        )
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
    with pytest.raises(ValueError, match=r"split: expected one of train for .*other, got none"):
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
    ("values", "advice"),
    [
        ({"train_stages": "all", "sizes": "65"}, "with 5 images per class, --freeze-backbone is usually more accurate"),
        ({"train_stages": "all", "sizes": "65", "weights": "none"}, None),
        ({}, None),
        ({"weights": "none"}, "the backbone tf_efficientnet_lite0 is frozen with random weights; use --train-stages"),
    ],
)
def test_advises_what_to_train(
    values: dict[str, Any], advice: str | None, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sppnet")
    options = ClassifyOptions(epochs=1, **values)
    for resume in (False, True):
        caplog.clear()
        train_classifier(data / "train", tmp_path / "run", options, resume=resume)
        texts = [text for text in caplog.messages if "freeze-backbone" in text or "random weights" in text]
        assert len(texts) == (advice is not None and not resume)
        assert all(text.startswith(str(advice)) for text in texts)


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


def test_holds_out_a_tenth_of_each_class_without_a_validation_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sppnet")
    root = write_classes(tmp_path / "data", 14)
    options = ClassifyOptions(freeze_backbone=True, levels=(1,), cache=str(tmp_path / "cache"))
    training = train_classifier(root, tmp_path / "run", options)
    assert {name: scores.images for name, scores in training.accuracy.items()} == {
        "training images": 39,
        "validation images": 3,
    }
    text = (
        "no validation split: validating on 3 of 42 images, chosen with seed 0; use --val none to train on all images"
    )
    assert caplog.messages.count(text) == 1
    assert train_classifier(root, tmp_path / "run", options, resume=True).scores == training.scores
    with pytest.raises(ValueError, match=r"held_out: expected 3, as when the training in .* started, got 0; "):
        train_classifier(root, tmp_path / "run", options, resume=True, val="none")
    for out, val, images in (("all", "none", 42), ("split", root, 42)):
        training = train_classifier(root, tmp_path / out, options, val=val)
        assert training.accuracy["training images"].images == images
        assert ("validation images" in training.accuracy) == (val == root)


def test_frozen_backbone_is_pooled_at_several_stages_by_default(data: Path, tmp_path: Path) -> None:
    options = ClassifyOptions(backbone="test_resnet", weights="none", levels=(2, 1), cache=str(tmp_path / "cache"))
    model = load_classifier(train_classifier(data, tmp_path / "run", options).run)
    assert model.config.stages == (3,)
    assert model.config.threshold is not None
    assert model.head.get_submodule("fc").in_features == model.vector_length == 5 * (192 + 96)
    single = train_classifier(data, tmp_path / "single", replace(options, stages=())).run
    assert load_classifier(single).config.stages == ()
    for changes in ({"stage": -1}, {"train_stages": "1", "epochs": 1, "batch": 4, "sizes": "64"}):
        changed = replace(options, **changes)
        assert load_classifier(train_classifier(data, tmp_path / changed.train_stages, changed).run).config.stages == ()


def test_reads_runs_of_earlier_versions_with_one_stage(data: Path, tmp_path: Path) -> None:
    options = ClassifyOptions(backbone="test_resnet", weights="none", levels=(1,), stages=())
    run = train_classifier(data, tmp_path / "run", options).run
    expected = load_classifier(run).predict(sorted((data / "val" / "red").iterdir()))
    for name in ("run.json", "options.json"):
        content = json.loads((run / name).read_text())
        del content.get("config", content)["stages"]
        (run / name).write_text(json.dumps(content))
    results = load_classifier(run).predict(sorted((data / "val" / "red").iterdir()))
    assert [result.top for result in results] == [result.top for result in expected]
    assert train_classifier(data, run, options, resume=True).finished
    with pytest.raises(ValueError, match=r"stages: expected \[\], as when the training in .* started, got None"):
        train_classifier(data, run, replace(options, stages=None), resume=True)
