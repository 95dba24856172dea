"""Range of shorter sides in training, warnings outside this range, and accuracy by shorter side."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sppnet import Classifier, ClassifierConfig, Resize, create_backbone
from sppnet.classify.evaluate import evaluate_classifier
from sppnet.classify.options import ClassifyOptions
from sppnet.classify.train import train_classifier
from sppnet.classify.trained_sides import trained_sides
from sppnet.cli.main import run
from sppnet.data.formats.classification import Sample, read_classification
from sppnet.registry import load_classifier
from sppnet.training.run import save
from tests.helpers.images import write_classes


def build(sides: tuple[int, int] | None, resize: str = "native", classes: tuple[str, ...] = ("a", "b")) -> Classifier:
    config = ClassifierConfig(classes, "test_resnet", resize=resize, trained_sides=sides)
    return Classifier(config, create_backbone("test_resnet", weights=None)).eval()


def gray(height: int, width: int) -> Image.Image:
    return Image.new("RGB", (width, height), "gray")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_classes(root / "train", 3)
    write_classes(root / "val", 2)
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ClassifyOptions(
        train_stages="all", backbone="test_resnet", weights="none", levels=(1,), sizes="42,56", epochs=1, batch=3
    )
    train_classifier(data / "train", out, options)
    return out


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [("224", (224, 256)), ("180,224", (180, 256)), ("224,180", (180, 256)), ("180-224", (180, 256)), ("48", (48, 55))],
)
def test_range_of_square_crops_extends_to_8_7_of_the_side(sizes: str, expected: tuple[int, int]) -> None:
    assert trained_sides([], ClassifyOptions(train_stages="all", sizes=sizes), Resize("native")) == expected


def test_range_of_native_sizes_is_that_of_the_files_within_max_pixels(tmp_path: Path) -> None:
    samples = []
    for number, size in enumerate(((50, 70), (90, 61), (200, 200))):
        samples.append(Sample(tmp_path / f"{number}.png", 0))
        gray(*size).save(samples[-1].path)
    unbounded, policy = ClassifyOptions(train_stages="all", sizes="native"), Resize("native")
    assert trained_sides(samples, unbounded, policy) == (50, 200)
    assert trained_sides(samples, replace(unbounded, max_pixels=10_000), policy) == (50, 100)
    (tmp_path / "broken.png").write_bytes(b"<html>")
    assert trained_sides([*samples, Sample(tmp_path / "broken.png", 0)], unbounded, policy) == (50, 200)
    assert trained_sides([Sample(tmp_path / "broken.png", 0)], unbounded, policy) is None
    # With a frozen backbone, images are resized by the policy, and the training sizes are not used.
    frozen = ClassifyOptions(sizes="224")
    assert trained_sides(samples, frozen, policy) == (50, 200)
    assert trained_sides(samples, frozen, Resize("shorter-side", 96)) == (96, 96)
    assert trained_sides(samples, frozen, Resize("native", max_pixels=10_000)) == (50, 100)


def test_run_stores_the_range_and_older_runs_load_without_it(trained: Path, tmp_path: Path) -> None:
    model = load_classifier(trained)
    assert model.config.trained_sides == (42, 64)
    save(model, tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    del content["config"]["trained_sides"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    older = load_classifier(tmp_path)
    assert older.config.trained_sides is None
    older.predict(gray(20, 20))  # a warning would be an error


def test_frozen_backbone_has_the_range_of_its_policy(data: Path, tmp_path: Path) -> None:
    options = ClassifyOptions(freeze_backbone=True, levels=(1,), resize="warp:48")
    train_classifier(data / "train", tmp_path / "run", options)
    assert load_classifier(tmp_path / "run").config.trained_sides == (48, 48)


@pytest.mark.parametrize("size", [(37, 90), (90, 37), (50, 50), (66, 70), (70, 66)])
def test_no_warning_for_sides_up_to_ten_percent_outside_the_range(size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build((40, 60)).predict(gray(*size))
        build(None).predict(gray(*size))


@pytest.mark.parametrize("size", [(36, 90), (90, 36), (67, 70), (70, 67)])
def test_warns_about_sides_outside_the_range(size: tuple[int, int]) -> None:
    message = r"1 of 1 images were classified at a shorter side outside the 40 to 60 pixels .* RUN DATA --compare"
    with pytest.warns(UserWarning, match=message):
        build((40, 60)).predict(gray(*size))


def test_warns_once_per_call_about_sizes_after_resizing() -> None:
    images = [gray(30, 90), gray(50, 50), gray(67, 67)]
    with pytest.warns(UserWarning, match="2 of 3 images") as warned:
        build((40, 60)).predict(images)
    assert len(warned) == 1
    build((40, 60), "shorter-side:60").predict(images)
    build((40, 60)).predict(images, views="10")  # views have fixed sizes
    with pytest.warns(UserWarning, match="3 of 3 images"):
        build((40, 60), "shorter-side:67").predict(images)


def test_evaluation_counts_images_outside_the_range(data: Path) -> None:
    samples = read_classification(data, "val").samples
    model = build((40, 60), classes=("blue", "green", "red"))
    outside = [evaluate_classifier(model, samples, resize=f"warp:{side}").outside for side in (36, 40, 60, 67)]
    assert outside == [6, 0, 0, 6]
    assert evaluate_classifier(model, samples, views="10").outside == 0


def read_output(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, " ".join(captured.err.split())


def test_commands_report_images_outside_the_range(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "6 of 6 images were classified at a shorter side outside the 42 to 64 pixels"
    for command in (["predict", str(trained), str(data / "val")], ["evaluate", str(trained), str(data), "--json"]):
        assert run([*command, "--resize", "warp:71"]) == 0
        out, err = read_output(capsys)
        assert line in err
        assert line not in out
        for inside in (["--resize", "warp:64"], ["--resize", "warp:42"], ["--views", "10"]):
            assert run([*command, *inside]) == 0
            assert "outside" not in read_output(capsys)[1]


def test_json_of_several_policies_matches_single_evaluations(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(trained), str(data), "--compare", "warp:80,48,64", "--json"]) == 0
    out, err = read_output(capsys)
    content = json.loads(out)
    model, samples = load_classifier(trained), read_classification(data, "val").samples
    assert list(content["compare"]) == ["warp:80", "shorter-side:48", "shorter-side:64"]
    assert {name: value for name, value in content.items() if name not in ("compare", "failures")} == content[
        "compare"
    ]["warp:80"]
    for policy, part in content["compare"].items():
        expected = evaluate_classifier(model, samples, resize=policy)
        assert (part["resize"], part["images"]) == (policy, 6)
        assert part["top1"] == expected.scores.top1
        assert {name: group["top1"] for name, group in part["by_aspect"].items()} == {
            name: scores.top1 for name, scores in expected.by_aspect.items()
        }
        assert sum(group["images"] for group in part["by_size"].values()) == 6
    assert [part["outside"] for part in content["compare"].values()] == [6, 0, 0]
    assert "outside" not in err  # the warning would recommend this very command


def test_table_has_a_row_per_policy_and_a_column_per_aspect_ratio(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(trained), str(data), "--compare", "48,80"]) == 0
    text, err = read_output(capsys)
    assert "outside" not in err, "the table says it"
    rows = [line for line in text.splitlines() if line.startswith("│")][2:]
    model, samples = load_classifier(trained), read_classification(data, "val").samples
    for row, side, label in zip(rows, (48, 80), ("shorter-side:48", "shorter-side:80 *"), strict=True):
        evaluation = evaluate_classifier(model, samples, resize=f"shorter-side:{side}")
        parts = [evaluation.scores, *evaluation.by_aspect.values()]
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells == [label, *(f"{100 * part.top1:.2f} ({part.images})" for part in parts)]
    assert "42 to 64 pixels" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "48", "--resize", "native"], "compare: expected neither --resize nor --views, got --resize"),
        (["--compare", "48", "--views", "10"], "compare: expected neither --resize nor --views, got --views"),
        (["--compare", "48,nativ"], "got 'nativ'; did you mean native?"),
        (["--compare", "0"], "expected a side of 1..8192 pixels for shorter-side, got 0"),
        (["--compare", "9000"], "expected a side of 1..8192 pixels for shorter-side, got 9000"),
        (["--split", "vel"], "got 'vel'; did you mean val?"),
    ],
)
def test_rejects_wrong_policies_and_splits(
    arguments: list[str], message: str, trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(trained), str(data), *arguments]) == 2
    out, err = read_output(capsys)
    assert message in err
    assert not out
