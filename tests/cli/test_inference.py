"""`sppnet evaluate` and `sppnet predict`: choice of the task by the run, and options of other tasks."""

from pathlib import Path

import pytest

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
    assert message in " ".join(err.split())
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
        (["predict", "imagenet", "{data}", "--out", "x"], "out: expected a detector or segmenter, got a classifier"),
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
