"""Comparison of training sizes: equal budgets, correct results, resuming, tables, and invalid arguments."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sppnet import Classifier
from sppnet.classify.evaluate import evaluate_classifier
from sppnet.classify.options import ClassifyOptions
from sppnet.classify.views import view_probabilities
from sppnet.cli.main import run
from sppnet.data.formats.classification import read_classification
from sppnet.data.images import image_size
from sppnet.registry import load_classifier
from sppnet.studies.sizes import (
    VARIANTS,
    RunScores,
    SizeComparison,
    compare_sizes,
    comparison_content,
    error_reduction,
    first_images,
    format_range,
    verdict,
)
from tests.helpers.images import write_classes

# A network of a few thousand weights, made for 160 pixels.
QUICK = ClassifyOptions(backbone="test_resnet", weights="none", levels=(2, 1), epochs=2, batch=3)
QUICK_ARGUMENTS = ["--backbone", "test_resnet", "--weights", "none", "--levels", "2,1", "--epochs", "2", "--batch", "3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data set in which one of seven validation images cannot be read."""
    root = tmp_path_factory.mktemp("data")
    write_classes(root / "train", 4)
    write_classes(root / "val", 2)
    (root / "val" / "red" / "broken.png").write_bytes(b"<html>")
    return root


@pytest.fixture(scope="module")
def command(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("out")
    return [
        "compare",
        "sizes",
        str(data),
        "--out",
        str(out),
        "--seeds",
        "1",
        "--images-per-class",
        "2",
        *QUICK_ARGUMENTS,
    ]


@pytest.fixture(scope="module")
def compared(command: list[str]) -> Path:
    assert run(command) == 1
    return Path(command[4])


def read_content(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    return content


def training_paths(out: Path) -> list[str]:
    return [row["path"] for row in csv.DictReader((out / "train.csv").read_text(encoding="utf-8").splitlines())]


def test_variants_differ_only_in_sizes_and_pyramid(compared: Path, data: Path) -> None:
    assert len(training_paths(compared)) == 6
    options = {name: json.loads((compared / f"{name}-0" / "options.json").read_text()) for name in VARIANTS}
    varied = {"sizes", "levels", "reduce"}
    assert [values["sizes"] for values in options.values()] == ["224", "224", "180,224", "180-224", "native"]
    for name, values in options.items():
        assert (values["levels"], values["reduce"]) == (([1], "avg") if name == "no-spp" else ([2, 1], "max"))
        assert {key for key in values if values[key] != options["single"][key]} <= varied


def test_errors_equal_those_of_evaluate_classifier(compared: Path, data: Path) -> None:
    variants = read_content(compared)["variants"]
    for name in ("no-spp", "multi", "native"):
        model = load_classifier(compared / f"{name}-0")
        samples = read_classification(data, "val", model.config.classes).samples
        model.backbone.side = 224
        tests: dict[str, dict[str, Any]] = {
            "10 views": {"views": "10"},
            "1 crop": {"resize": "center-crop:224"},
            "1 full": {"resize": "shorter-side:256"},
            "own size": {"resize": "native"},
        }
        for test, kwargs in tests.items():
            scores = evaluate_classifier(model, samples, **kwargs).scores
            assert variants[name]["top1_error"][test] == [pytest.approx(100 * (1 - scores.top1))]
            assert variants[name]["top5_error"][test] == [pytest.approx(100 * (1 - scores.top5))]


def test_pixels_follow_from_the_training_sizes(compared: Path) -> None:
    variants = read_content(compared)["variants"]
    assert variants["no-spp"]["pixels"] == variants["single"]["pixels"] == [2 * 6 * 224**2]
    assert variants["multi"]["pixels"] == [6 * (180**2 + 224**2)]
    assert 2 * 6 * 180**2 <= variants["random"]["pixels"][0] <= 2 * 6 * 224**2
    sizes = [image_size(path) for path in training_paths(compared)]
    assert variants["native"]["pixels"] == [2 * sum(height * width for height, width in sizes)]


def test_finished_comparison_is_only_printed(
    compared: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in compared.glob("*/*")}
    assert run([*command, "--json", "--workers", "1"]) == 1  # workers do not affect the results
    captured = capsys.readouterr()
    assert json.loads(captured.out) == read_content(compared)
    assert "1 image could not be used" in captured.err
    assert [Path(failure["path"]).name for failure in json.loads(captured.out)["failures"]] == ["broken.png"]
    assert "epoch" not in captured.err
    assert {path: path.stat().st_mtime_ns for path in compared.glob("*/*")} == before


def test_interrupted_comparison_resumes(
    compared: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run is missing, and another one is trained but not tested."""
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    # A training refuses to resume with another listing, and the listing is in the copied folder.
    for options in out.glob("*/options.json"):
        options.write_text(options.read_text().replace(str(compared), str(out)))
    shutil.rmtree(out / "native-0")
    (out / "random-0" / "scores.json").unlink()
    assert run([*command[:4], str(out), *command[5:]]) == 1
    err = capsys.readouterr().err
    assert f"training {out / 'native-0'}" in err.replace("\n", "")
    assert f"resuming {out / 'random-0'}" in err.replace("\n", "")
    assert err.count("epoch 1  ") == 1
    old, new = read_content(compared), read_content(out)
    for name in VARIANTS:
        assert new["variants"][name]["top1_error"] == old["variants"][name]["top1_error"]


def test_rejects_changed_options(compared: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--lr", "0.5"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "lr: expected None, as when the training in" in error
    assert "started, got 0.5" in error


def test_other_validation_images_are_tested_without_retraining(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training images that cannot be read are reported every time."""
    monkeypatch.setattr("sppnet.studies.sizes.VARIANTS", {"native": "native"})
    root = tmp_path / "train"
    write_classes(root, 2)
    (root / "red" / "bad.png").write_bytes(b"<html>")
    train, val = read_classification(root), read_classification(data, "val")
    for subset, bad in ((val, ["bad.png", "broken.png"]), (first_images(val, 1, 0), ["bad.png"])):
        for _ in range(2):
            comparison = compare_sizes(train, subset, QUICK, tmp_path / "out", seeds=1)
            assert comparison.images == (7, len(subset.samples))
            assert [Path(error.path).name for error in comparison.failures] == bad
    metrics = (tmp_path / "out" / "native-0" / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 2


def test_larger_count_adds_to_the_first_images(data: Path) -> None:
    train = read_classification(data, "train")
    chosen = [{sample.path for sample in first_images(train, count, 0).samples} for count in (1, 2, 3, 9)]
    assert [len(paths) for paths in chosen] == [3, 6, 9, 12]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    for count in (1, 2):
        labels = [sample.label for sample in first_images(train, count, 0).samples]
        assert labels == sorted(list(range(3)) * count)
    assert len({tuple(first_images(train, 1, seed).samples) for seed in range(8)}) > 1
    assert first_images(train, None, 0) is train


@pytest.mark.parametrize(
    ("single", "multi", "text"),
    [
        (
            (30.0, 34.0),
            (29.0, 31.0),
            "error of 30.0 %, 224 alone 32.0 % (2 seeds, ranges overlap): no measurable differ",
        ),
        (
            (30.0, 34.0),
            (26.0, 28.0),
            "27.0 %, 224 alone 32.0 % (2 seeds, ranges do not overlap): two sizes were 5.0 poi",
        ),
        ((26.0, 28.0), (30.0, 34.0), "ranges do not overlap): two sizes were 5.0 points worse"),
        ((26.0,), (25.0,), "(one seed): more seeds are needed"),
    ],
)
def test_verdict_names_a_difference_only_if_the_ranges_do_not_overlap(
    single: tuple[float, ...], multi: tuple[float, ...], text: str
) -> None:
    runs = {
        name: [RunScores({"10 views": error}, {}, 1, 1.0, ()) for error in errors]
        for name, errors in (("single", single), ("multi", multi))
    }
    assert text in verdict(SizeComparison(runs, 2, (6, 7)))


def test_gain_and_spread() -> None:
    assert error_reduction([36.0, 34.0], [35.0, 34.5]) == [1.0, -0.5]
    assert format_range([1.0, -0.5], "+") == "+0.2\n-0.5 to +1.0"
    assert format_range([12.34]) == "12.3"


def test_json_has_the_papers_tables_2_and_3(compared: Path) -> None:
    """The errors reproduce the gains printed in the paper."""
    paper = read_content(compared)["paper"]
    views = paper["10 views"]["top1"]
    gains = [round(before - after, 2) for before, after in zip(views["no-spp"], views["multi"], strict=True)]
    assert gains == [1.39, 0.99, 1.87, 2.33]
    views = paper["10 views"]["top5"]
    gains = [round(before - after, 2) for before, after in zip(views["no-spp"], views["single"], strict=True)]
    assert gains == [0.62, 0.38, 0.72, 0.85]
    assert paper["1 crop and 1 full"]["multi"] == {"ZF-5": [37.57, 37.07], "Overfeat-7": [32.57, 31.25]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_backbone": True}, "freeze_backbone: expected False, got True"),
        ({"devices": 2, "train_stages": "all"}, "devices: expected 1 for a comparison of sizes, got 2"),
    ],
)
def test_rejects_incomparable_options(options: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    train, val = (read_classification(data, split) for split in ("train", "val"))
    with pytest.raises(ValueError, match=message):
        compare_sizes(train, val, replace(QUICK, **options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_views_have_224_pixels_whatever_the_training_side(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = []

    def record_side(model: Classifier, image: Image.Image, views: Any) -> Any:
        sides.append(model.backbone.side)
        return view_probabilities(model, image, views)

    monkeypatch.setattr("sppnet.classify.predict.view_probabilities", record_side)
    monkeypatch.setattr("sppnet.studies.sizes.VARIANTS", {"native": "native"})
    train, val = (first_images(read_classification(data, split), 1, 0) for split in ("train", "val"))
    compare_sizes(train, val, QUICK, tmp_path, seeds=1)
    assert sides == [224] * 3


def test_seeds_count_up_from_the_first(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppnet.studies.sizes.VARIANTS", {"random": "180-224"})
    train, val = (first_images(read_classification(data, split), 1, 0) for split in ("train", "val"))
    comparison = compare_sizes(train, val, replace(QUICK, seed=5), tmp_path, seeds=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["random-5", "random-6", "train.csv"]
    assert [json.loads((tmp_path / f"random-{seed}" / "options.json").read_text())["seed"] for seed in (5, 6)] == [5, 6]
    assert len({run.pixels for run in comparison.runs["random"]}) == 2  # the random sides differ
    assert comparison_content(comparison)["seeds"] == 2
