"""The commands as a user types them: exit codes, what goes to standard output, what goes to standard error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sppnet.cli.common import parse_level_text
from sppnet.cli.main import run
from tests.helpers.images import write_classes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_classes(root / "train", 4)
    write_classes(root / "test", 2)
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert run(["train", "classify", str(data), "--freeze-backbone", "--levels", "2,1", "--out", str(out)]) == 0
    return out


def test_evaluate_prints_one_json_object(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(trained), str(data), "--split", "test", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["images"] == 6
    assert content["top1"] > 0.5
    assert content["top5"] == 1
    assert 0 <= content["mean_per_class_accuracy"] <= 1


def test_evaluate_takes_the_test_split_by_itself(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(trained), str(data), "--compare", "center-crop,warp,square-min,native", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content["compare"]) == {"center-crop:224", "warp:224", "square-min", "native"}
    assert all(part["images"] == 6 for part in content["compare"].values())


def test_evaluate_prints_tables_for_people(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(trained), str(data / "test")]) == 0
    captured = capsys.readouterr()
    assert "mean per class" in captured.out
    assert "by aspect ratio" in captured.out
    assert "mean per class" not in captured.err


def test_predict_prints_json_lines_and_names_bad_files(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"")
    arguments = ["predict", str(trained), str(data / "test"), str(tmp_path), str(tmp_path / "none.png"), "--json"]
    assert run(arguments) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert len(lines) == 6
    assert {line["label"] for line in lines} <= {"blue", "green", "red"}
    assert "2 images could not be used" in captured.err
    assert "broken.jpg: file is empty" in captured.err
    assert "none.png: no such file" in captured.err


def test_predict_does_not_depend_on_the_batch(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for batch in ("1", "32"):
        assert run(["predict", str(trained), str(data / "test"), "--batch", batch, "--json"]) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for alone, together in zip(*answers, strict=True):
        assert alone["label"] == together["label"]
        assert alone["score"] == pytest.approx(together["score"], rel=1e-5)


def test_the_embedded_network_needs_no_run(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((data / "test" / "red").iterdir())
    assert run(["predict", "imagenet", str(image)]) == 0
    assert capsys.readouterr().out.startswith(f"{image}\t")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "classify", "{}/nowhere", "--out", "{}/r"], "no data set at"),
        (["train", "classify", "{data}/train/red", "--out", "{}/r"], "a folder of class folders was expected"),
        (["train", "classify", "{data}", "--out", "{}/r", "--backbone", "resnet81"], "no network is called 'resnet81'"),
        (["train", "classify", "{data}", "--out", "{}/r", "--backbone", "resnet18"], "choose 'hub'"),
        (["train", "classify", "{data}", "--out", "{}/r", "--levels", "2,0"], "smallest level is 1"),
        (["train", "classify", "{data}", "--out", "{}/r", "--levels", "two"], "levels: expected numbers"),
        (["train", "classify", "{data}", "--out", "{run}"], "holds a training already"),
        (["evaluate", "{}/nowhere", "{data}"], "no such folder"),
        (["evaluate", "{data}", "{data}"], "it has no run.json"),
        (["evaluate", "{run}", "{data}", "--split", "vla"], "split must be one of train, test"),
        (["evaluate", "{run}", "{data}", "--resize", "center-crp"], "did you mean center-crop"),
        (["predict", "{run}", "{data}", "--views", "7"], "views: expected one of full, 10, 18, 96"),
        (["predict", "{run}", "{data}", "--views", "10", "--resize", "native"], "views have sizes of their own"),
        (["evaluate", "{run}", "{data}", "--compare", "native,wrap"], "did you mean warp"),
        (["predict", "{run}", "{data}", "--device", "abacus"], "device: 'abacus' cannot be used here"),
        (["predict", "{run}", "{data}", "--batch", "0"], "batch: expected at least 1"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_what_to_do(
    arguments: list[str], message: str, trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"run": str(trained), "data": str(data)}
    assert run([text.format(tmp_path, **places) for text in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert not captured.out
    assert not (tmp_path / "r").exists()


def test_what_predict_passes_over_is_named(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph = next((data / "test").rglob("*.*"))
    for name in ("a" + photograph.suffix, "b.txt", "c.TXT", "d.heic"):
        (tmp_path / name).write_bytes(photograph.read_bytes())
    assert run(["predict", str(trained), str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert f"no image by its extension: {tmp_path / 'b.txt'} and 1 more with .txt" in captured.err
    assert f"no image by its extension: {tmp_path / 'd.heic'}" in captured.err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_traceback(trained: Path, data: Path, unbuffered: str) -> None:
    command = [sys.executable, "-m", "sppnet", "predict", str(trained), str(data / "test")]
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Error" not in process.stderr.read()
    assert process.returncode == 1


def test_pillow_s_own_warnings_are_not_printed(trained: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*" + b"\xff" * 60_000)
    command = [sys.executable, "-m", "sppnet", "predict", str(trained), str(tmp_path / "a.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "a.jpg\t" in done.stdout
    assert "EXIF" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["train"], ["predict"], ["evaluate", "--fly"], ["train", "classify"]]
)
def test_words_it_does_not_know_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(arguments)
    assert error.value.code == 2


@pytest.mark.parametrize("arguments", [["--help"], ["train", "classify", "--help"], ["--version"]])
def test_help_and_version_answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(arguments)
    assert error.value.code == 0
    assert "sppnet" in capsys.readouterr().out


def test_levels_as_people_type_them() -> None:
    assert parse_level_text("6,3,2,1") == (6, 3, 2, 1)
    assert parse_level_text("(2x3, 1)") == ((2, 3), 1)
    assert parse_level_text([3, 1]) == (3, 1)
    with pytest.raises(ValueError, match="numbers such as 6,3,2,1"):
        parse_level_text("a,b")
