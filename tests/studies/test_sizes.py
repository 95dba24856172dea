"""The comparison of training sizes: equal budgets, figures counted anew, resuming, and wrong arguments."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from sppnet import Classifier
from sppnet.classify.evaluate import evaluate_classifier
from sppnet.classify.views import view_probabilities
from sppnet.cli.compare_sizes import tables
from sppnet.cli.main import run
from sppnet.data.formats.class_folders import read_classification
from sppnet.data.images import image_size
from sppnet.registry import load_classifier
from sppnet.studies.sizes import VARIANTS, compare_sizes, comparison_content, first_images, gain, spread
from sppnet.training.options import TrainOptions
from tests.helpers.images import write_classes

# A network of a few thousand weights; views of 224 pixels although it was made for 160.
QUICK = TrainOptions(backbone="test_resnet", weights="none", levels=(2, 1), epochs=2, batch=3)
WORDS = ["--backbone", "test_resnet", "--weights", "none", "--levels", "2,1", "--epochs", "2", "--batch", "3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of seven images to test on cannot be read."""
    root = tmp_path_factory.mktemp("data")
    write_classes(root / "train", 4)
    write_classes(root / "val", 2)
    (root / "val" / "red" / "broken.png").write_bytes(b"<html>")
    return root


@pytest.fixture(scope="module")
def command(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("out")
    return ["compare-sizes", str(data), "--out", str(out), "--seeds", "1", "--images-per-class", "2", *WORDS]


@pytest.fixture(scope="module")
def compared(command: list[str]) -> Path:
    assert run(command) == 1
    return Path(command[3])


def content_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    return content


def listed(out: Path) -> list[str]:
    return [row["path"] for row in csv.DictReader((out / "train.csv").read_text(encoding="utf-8").splitlines())]


def test_all_variants_train_on_the_same_images_with_the_same_options(compared: Path, data: Path) -> None:
    assert len(listed(compared)) == 6
    options = {name: json.loads((compared / f"{name}-0" / "options.json").read_text()) for name in VARIANTS}
    varied = {"sizes", "levels", "reduce"}
    assert [told["sizes"] for told in options.values()] == ["224", "224", "180,224", "180-224", "native"]
    for name, told in options.items():
        assert (told["levels"], told["reduce"]) == (([1], "avg") if name == "no-spp" else ([2, 1], "max"))
        assert {key for key in told if told[key] != options["single"][key]} <= varied


def test_the_figures_are_those_of_the_runs(compared: Path, data: Path) -> None:
    """Each error once more, by `evaluate_classifier` on the run folder."""
    variants = content_of(compared)["variants"]
    for name in ("no-spp", "multi", "native"):
        model = load_classifier(compared / f"{name}-0")
        samples = read_classification(data, "val", model.config.classes).samples
        model.backbone.side = 224
        for test, how in (
            ("10 views", {"views": "10"}),
            ("1 crop", {"resize": "center-crop:224"}),
            ("1 full", {"resize": "shorter-side:256"}),
            ("own size", {"resize": "native"}),
        ):
            scores = evaluate_classifier(model, samples, **how).scores
            assert variants[name]["top1_error"][test] == [pytest.approx(100 * (1 - scores.top1))]
            assert variants[name]["top5_error"][test] == [pytest.approx(100 * (1 - scores.top5))]


def test_the_pixels_are_those_of_the_sizes(compared: Path) -> None:
    variants = content_of(compared)["variants"]
    assert variants["no-spp"]["pixels"] == variants["single"]["pixels"] == [2 * 6 * 224**2]
    assert variants["multi"]["pixels"] == [6 * (180**2 + 224**2)]
    assert 2 * 6 * 180**2 <= variants["random"]["pixels"][0] <= 2 * 6 * 224**2
    sizes = [image_size(path) for path in listed(compared)]
    assert variants["native"]["pixels"] == [2 * sum(height * width for height, width in sizes)]


def test_a_finished_comparison_is_printed_and_not_done_again(
    compared: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in compared.glob("*/*")}
    assert run([*command, "--json", "--workers", "1"]) == 1  # workers change no figure
    captured = capsys.readouterr()
    assert json.loads(captured.out) == content_of(compared)
    assert "1 image could not be used" in captured.err
    assert [Path(one["path"]).name for one in json.loads(captured.out)["failures"]] == ["broken.png"]
    assert "epoch" not in captured.err
    assert {path: path.stat().st_mtime_ns for path in compared.glob("*/*")} == before


def test_a_killed_comparison_goes_on_where_it_stopped(
    compared: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run never begun, one trained and not yet tested."""
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    # The listing lies in the folder, and a training belongs to its listing.
    for options in out.glob("*/options.json"):
        options.write_text(options.read_text().replace(str(compared), str(out)))
    shutil.rmtree(out / "native-0")
    (out / "random-0" / "scores.json").unlink()
    begun = [*command[:3], str(out), *command[4:]]
    assert run(begun) == 1
    err = capsys.readouterr().err
    assert f"training {out / 'native-0'}" in err.replace("\n", "")
    assert f"going on with {out / 'random-0'}" in err.replace("\n", "")
    assert err.count("epoch 1  ") == 1
    old, new = content_of(compared), content_of(out)
    for name in VARIANTS:
        assert new["variants"][name]["top1_error"] == old["variants"][name]["top1_error"]


def test_other_options_are_refused(compared: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--lr", "0.5"]) == 2
    assert "begun with lr=None, now it is 0.5" in " ".join(capsys.readouterr().err.split())


def test_a_trained_network_is_tested_anew_on_other_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And images that training cannot read are told each time."""
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


def test_the_first_images_are_the_same_for_every_count(data: Path) -> None:
    train = read_classification(data, "train")
    chosen = [{sample.path for sample in first_images(train, count, 0).samples} for count in (1, 2, 3, 9)]
    assert [len(one) for one in chosen] == [3, 6, 9, 12]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    for count in (1, 2):
        labels = [sample.label for sample in first_images(train, count, 0).samples]
        assert labels == sorted(list(range(3)) * count)
    assert len({tuple(first_images(train, 1, seed).samples) for seed in range(8)}) > 1
    assert first_images(train, None, 0) is train


def test_gains_and_spreads_counted_by_hand() -> None:
    assert gain([36.0, 34.0], [35.0, 34.5]) == [1.0, -0.5]
    assert spread([1.0, -0.5], "+") == "+0.2\n-0.5 to +1.0"
    assert spread([12.34]) == "12.3"


def shown(compared: Path) -> list[str]:
    """The lines of the tables of invented errors, in a narrow window."""
    content = content_of(compared)
    errors = {"no-spp": [40.0, 50.0], "single": [30.0, 47.0], "multi": [20.0, 21.0]}
    for name, variant in content["variants"].items():
        values = errors.get(name, [10.0, 10.0])
        variant["top1_error"] = {
            test: [error + number for error in values] for number, test in enumerate(variant["top1_error"])
        }
        variant["pixels"], variant["seconds"] = [2_000_000, 3_000_000], [1.0, 2.0]
    content["seeds"] = 2
    console = Console(file=io.StringIO(), width=80)
    for table in tables(content):
        console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_tables_have_means_ranges_gains_and_the_paper_s_figures(compared: Path) -> None:
    lines = shown(compared)
    assert not any("…" in line for line in lines)
    for line in (
        "top-1 45.0 38.5 20.5 10.0 10.0",
        "gain +6.5 +24.5 +35.0 +35.0",
        "ZF-5 [35.99] [34.98] [34.60]",
        "Overfeat-7 [32.01] [30.36] [29.68] [30.06]",
        "Convnet*-5 [13.92] [13.54] [13.33]",
        "Overfeat-7 [11.97] [11.12] [10.95] [10.96]",
        "1 crop 46.0 39.5 21.5 11.0 11.0",
        "1 full 47.0 40.5 22.5 12.0 12.0",
        "own size 48.0 41.5 23.5 13.0 13.0",
        "Overfeat-7, [32.72] [31.25]",
        "seconds 1.5 1.5 1.5 1.5 1.5",
    ):
        assert line in lines
    assert lines.count("224 224 180,224 180-224 native") == 3
    # Of each seed: 40 - 30 and 50 - 47. A narrow cell is broken at its spaces.
    after = " ".join(lines[lines.index("gain +6.5 +24.5 +35.0 +35.0") + 1 :][:2])
    assert after.startswith("+3.0 to +20.0 to +30.0 to +30.0 to")
    assert after.endswith("+10.0 +29.0 +40.0 +40.0")


def test_json_has_the_paper_s_figures_of_tables_2_and_3(compared: Path) -> None:
    """The gains that the paper prints beside its figures follow from them."""
    paper = content_of(compared)["paper"]
    views = paper["10 views"]["top1"]
    gains = [round(before - after, 2) for before, after in zip(views["no-spp"], views["multi"], strict=True)]
    assert gains == [1.39, 0.99, 1.87, 2.33]
    views = paper["10 views"]["top5"]
    gains = [round(before - after, 2) for before, after in zip(views["no-spp"], views["single"], strict=True)]
    assert gains == [0.62, 0.38, 0.72, 0.85]
    assert paper["1 crop and 1 full"]["multi"] == {"ZF-5": [37.57, 37.07], "Overfeat-7": [32.57, 31.25]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{data}/train"], "train has no split val or test to measure on; give --val"),
        (["{data}", "--epochs", "1"], "epochs: expected at least 2, so that both sizes in turn have one; got 1"),
        (["{data}", "--seeds", "0"], "seeds: expected at least 1; got 0"),
        (["{data}", "--images-per-class", "0"], "images-per-class: expected at least 1; got 0"),
        (["{data}", "--val-images-per-class", "-1"], "val-images-per-class: expected at least 1; got -1"),
        (["{data}", "--levels", "two"], "levels: expected numbers"),
        (["{data}", "--val", "{data}/nowhere"], "no data set at"),
    ],
)
def test_wrong_arguments_leave_no_folder(
    arguments: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["compare-sizes", *(text.format(data=data) for text in arguments), "--out", str(out)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_backbone": True}, "freeze_backbone: a frozen backbone learns nothing of sizes"),
        ({"devices": 2}, "devices: a comparison of sizes runs in one process; got 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(options: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    train, val = (read_classification(data, split) for split in ("train", "val"))
    with pytest.raises(ValueError, match=message):
        compare_sizes(train, val, replace(QUICK, **options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_views_are_of_224_pixels_whatever_the_network_was_made_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = []

    def noted(model: Classifier, image: Image.Image, views: Any) -> Any:
        sides.append(model.backbone.side)
        return view_probabilities(model, image, views)

    monkeypatch.setattr("sppnet.classify.predict.view_probabilities", noted)
    monkeypatch.setattr("sppnet.studies.sizes.VARIANTS", {"native": "native"})
    train, val = (first_images(read_classification(data, split), 1, 0) for split in ("train", "val"))
    compare_sizes(train, val, QUICK, tmp_path, seeds=1)
    assert sides == [224] * 3


def test_seeds_follow_the_first_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppnet.studies.sizes.VARIANTS", {"random": "180-224"})
    train, val = (first_images(read_classification(data, split), 1, 0) for split in ("train", "val"))
    comparison = compare_sizes(train, val, replace(QUICK, seed=5), tmp_path, seeds=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["random-5", "random-6", "train.csv"]
    assert [json.loads((tmp_path / f"random-{seed}" / "options.json").read_text())["seed"] for seed in (5, 6)] == [5, 6]
    assert len({run.pixels for run in comparison.runs["random"]}) == 2  # other sides are drawn
    assert comparison_content(comparison)["seeds"] == 2
