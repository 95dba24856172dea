"""`sppnet evaluate` and `sppnet predict`: choice of the task by the run, and options of other tasks."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from sppnet.classify.model import create_classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.cli.main import run
from sppnet.segment.model import create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.training.run import save


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "unreadable.png"
    path.parent.mkdir()
    path.write_bytes(b"no image")
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of an untrained classifier of three classes."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    save(create_classifier(ClassifierConfig(("a", "b", "c"), "zf5"), None), folder)
    return folder


def test_predict_with_the_embedded_network(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((data / "test" / "red").iterdir())
    assert run(["predict", "imagenet", str(image)]) == 0
    assert capsys.readouterr().out.startswith(f"{image}\t")


@pytest.mark.parametrize(
    ("run_folder", "options", "message"),
    [
        ("{zf5}", "--resize warp:15", "resize: expected a side of at least 31 for zf5, got warp:15"),
        ("{zf5}", "--resize shorter-side:30", "resize: expected a side of at least 31 for zf5, got shorter-side:30"),
        ("imagenet", "--resize native:33", "resize: expected no side for native, got 33"),
        ("imagenet", "--views 11", "views: expected one of full, 10, 18, 96, 96+2, got '11'"),
        ("imagenet", "--batch 0", "batch: expected at least 1, got 0"),
        ("imagenet", "--top 0 --out {folder}/out", "top: expected at least 1, got 0"),
        ("imagenet", "--json --csv", "csv: expected no value with --json, got both"),
        ("imagenet", "--csv --engine ray --out {folder}/out", "csv: expected no value with --engine ray, got True"),
        ("imagenet", "--out {folder}/images", "out: expected a new or empty folder, got {folder}/images, which has"),
        ("imagenet", "--list {folder}/empty.csv", "list: expected one column path in {folder}/empty.csv, got ''"),
        ("imagenet", "--device nowhere", "device: expected an available device, got 'nowhere'"),
        (
            "{detector}",
            "--svd 4,4,4",
            "ranks: expected one for each of the 0 fc layers [], or none, got (4, 4, 4)",
        ),
        ("{detector}", "--proposals grid,selective", "source: expected one of selective-search"),
        ("{detector}", "--proposals x --engine ray --out {folder}/out", "source: expected one of selective-search"),
        ("{detector}", "--proposals {folder}/empty.csv", "empty.csv"),
        ("{detector}", "--workers 0", "workers: expected at least 1, got 0"),
        ("{segmenter}", "--tile 33", "tile: expected a multiple of 16, the model's stride, got 33; use 48"),
        ("{segmenter}", "--tile 64", "tile: expected at least 160 pixels, twice the sum of overlap 64 and stride 16"),
        ("{segmenter}", "--overlap 50", "overlap: expected a multiple of 16, the model's stride, got 50; use 64"),
        ("{segmenter}", "--memory 1MB", "memory: expected enough for the model and an image, got 1MB, but the process"),
        ("{plain}", "--global-context", "context: expected a model whose ASPP has an image-level branch"),
        ("{segmenter}", "--write masks --out {folder}/out", "write: expected one of palette, overlay, probabilities"),
        ("{segmenter}", "--max-image-pixels 0", "max_image_pixels: expected at least 1, got 0"),
    ],
)
def test_options_are_checked_before_images_are_read(
    run_folder: str,
    options: str,
    message: str,
    unreadable: Path,
    detector_run: Path,
    segmenter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.csv").write_text("")
    if run_folder == "{zf5}":
        save(create_classifier(ClassifierConfig(("a", "b"), "zf5"), None), tmp_path / "zf5")
    if run_folder == "{plain}":
        config = SegmenterConfig(("sky", "sea"), width=8, image_level=False)
        save(create_segmenter(config, None), tmp_path / "plain")
    paths = {name: tmp_path / name for name in ("zf5", "plain")}
    paths |= {"folder": tmp_path, "detector": detector_run, "segmenter": segmenter}
    command = ["predict", run_folder.format(**paths), str(unreadable), *options.format(**paths).split()]
    assert run(command) == 2
    out, err = capsys.readouterr()
    assert message.format(**paths) in " ".join(err.split())
    assert "could not be used" not in err
    assert not out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "{detector}", "{data}", "--views", "10"], "views: expected a classifier, got a detector in"),
        (["evaluate", "{segmenter}", "{data}", "--svd", "4,4"], "svd: expected a detector, got a segmenter in"),
        (["evaluate", "imagenet", "{data}", "--flip"], "flip: expected a segmenter, got a classifier in imagenet"),
        (["predict", "imagenet", "{data}", "--svd", "4,4"], "svd: expected a detector, got a classifier in imagenet"),
        (["predict", "{detector}", "{data}", "--top", "3"], "top: expected a classifier, got a detector in {detector}"),
        (
            ["predict", "{detector}", "{data}", "--max-image-pixels", "9"],
            "got a detector in {detector}; omit --max-image-pixels",
        ),
    ],
)
def test_rejects_options_of_other_tasks(
    arguments: list[str],
    message: str,
    data: Path,
    detector_run: Path,
    segmenter: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"data": data, "detector": detector_run, "segmenter": segmenter}
    assert run([text.format(**paths) for text in arguments]) == 2
    captured = capsys.readouterr()
    assert message.format(**paths) in captured.err
    assert not captured.out


def test_predicts_for_images_of_arguments_lists_and_standard_input(
    data: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted((data / "test").rglob("*.png"))
    (tmp_path / "list.txt").write_text(f"{images[1]}\ngone.png\n{images[0]}\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{images[2]}\n{images[3]}\n".encode())))
    command = ["predict", str(classifier), "--json", "--list", str(tmp_path / "list.txt"), str(images[0]), "-"]
    assert run(command) == 1
    out, err = capsys.readouterr()
    sources = [json.loads(text)["source"] for text in out.splitlines()]
    assert sources == [str(images[index]) for index in (0, 2, 3, 1)]
    assert "1 repeated image skipped" in err
    assert f"{tmp_path / 'gone.png'}: no such file or folder" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert run(["predict", str(classifier), "-"]) == 2
    assert "images: expected one path per line on standard input, got none" in capsys.readouterr().err
    assert run(["predict", str(classifier)]) == 2
    assert "images: expected files or folders, - for standard input, or --list" in capsys.readouterr().err


def test_csv_and_class_folders_have_the_classes_of_json(
    data: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def predict(*options: str) -> str:
        assert run(["predict", str(classifier), str(data / "test"), "--top", "2", *options]) == 0
        return capsys.readouterr().out

    answers = [json.loads(text) for text in predict("--json").splitlines()]
    assert {len(answer["top"]) for answer in answers} == {2}
    expected = [
        [answer["source"], *(text for part in answer["top"] for text in (part["label"], f"{part['score']:.6f}"))]
        for answer in answers
    ]
    out = tmp_path / "out"
    rows = list(csv.reader(predict("--csv", "--out", str(out)).splitlines()))
    assert rows == [["path", "label", "score", "label_2", "score_2"], *expected]
    assert list(csv.reader((out / "predictions.csv").read_text().splitlines())) == rows
    links = {(path.parent.name, str(path.readlink())) for path in out.glob("*/*")}
    assert links == {(answer["label"], answer["source"]) for answer in answers}


@pytest.mark.parametrize(
    ("task", "header"), [("detector", "path,label,score,x1,y1,x2,y2"), ("segmenter", "path,label,share")]
)
def test_other_tasks_print_csv_with_escaped_names(
    task: str, header: str, detector_run: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.effect_noise((96, 80), 60).save(tmp_path / "a\nb.png")
    command = ["predict", str(segmenter), str(tmp_path)]
    if task == "detector":
        command = ["predict", str(detector_run), str(tmp_path), "--min-score", "0"]
    assert run([*command, "--csv"]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == header
    assert rows
    assert all(row.startswith(rf"{tmp_path}/a\nb.png,") and row.count(",") == header.count(",") for row in rows)
    assert run(command) == 0
    assert all(row.startswith(rf"{tmp_path}/a\nb.png" "\t") for row in capsys.readouterr().out.splitlines())
