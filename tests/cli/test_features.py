"""`sppnet features`: printed summary, clipped boxes and invalid arguments."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from sppnet.cli.main import run
from sppnet.features.vectors import read_features

OPTIONS = ["--backbone", "zf5", "--weights", "none", "--levels", "1", "--scales", "64"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    Image.effect_noise((80, 64), 60).save(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("image,x1,y1,x2,y2\na.png,0,0,40,40\na.png,40,30,90,64\n")
    return tmp_path


def features(images: Path, *options: str) -> int:
    out = str(images / "out")
    return run(["features", str(images), "--boxes", str(images / "boxes.csv"), "--out", out, *OPTIONS, *options])


def test_prints_a_summary_and_lists_clipped_boxes(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert features(images, "--on-bad", "clip") == 0
    captured = capsys.readouterr()
    assert captured.out == f"2 vectors of length 256 in 1 files: {images / 'out'}\n"
    assert "1 boxes or images were clipped or skipped" in captured.err
    assert "line 3" in (images / "out" / "problems.txt").read_text()
    (written,) = read_features(images / "out")
    assert written.boxes[1].tolist() == [40, 30, 80, 64]


@pytest.mark.parametrize("scales", ["100;200", "", "-1", "1.5"])
def test_rejects_malformed_scales(images: Path, scales: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        features(images, f"--scales={scales}")
    assert f"--scales: expected comma-separated numbers of at least 1, got '{scales}'" in capsys.readouterr().err
    assert not (images / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draw", "-1"], "draw: expected 0 or more images, got -1"),
        (["--levels", "0"], "levels[0]: expected at least 1 bin per side, got 0"),
        (["--scales", "9"], "scales: expected shorter sides of at least 31 pixels for zf5, got (9,)"),
        (["--max-side", "9"], "max_side: expected at least the largest scale, 64, got 9"),
        (["--box-format", "xywh"], "box_format: expected xyxy or xyxy-normalised"),
        (["--device", "nowhere"], "device: expected an available device, got 'nowhere'"),
    ],
)
def test_options_are_checked_before_images_are_read(
    images: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "a.png").write_bytes(b"no image")
    assert features(images, *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (images / "out").exists()


@pytest.mark.parametrize(("old", "new"), [("--rule=paper", "--cell-rule"), ("--format=parquet", "--storage")])
def test_renamed_options_name_the_new_ones(
    images: Path, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        features(images, old)
    assert f"{old.partition('=')[0]} is now called {new}" in capsys.readouterr().err


def test_cell_rule_reduction_and_scales_reach_the_encoder(images: Path) -> None:
    options = [
        "--cell-rule",
        "released",
        "--reduce",
        "avg",
        "--scales",
        "64,96",
        "--max-side",
        "200",
        "--levels",
        "2x1,1",
    ]
    assert features(images, "--on-bad", "drop", *options) == 0
    settings = json.loads((images / "out" / "index.json").read_text())["settings"]
    assert (settings["rule"], settings["reduce"], settings["max_side"]) == ("released", "avg", 200)
    assert (settings["scales"], settings["levels"]) == ([64, 96], [[2, 1], 1])


def test_random_weights_are_the_same_in_every_run(images: Path) -> None:
    assert features(images, "--on-bad", "drop") == 0
    torch.manual_seed(1)
    assert features(images, "--on-bad", "drop") == 0


def test_parsers_do_not_import_torch() -> None:
    modules = "sppnet.cli.features, sppnet.cli.export"
    parsers = (
        "sppnet.cli.features.features_parser(), sppnet.cli.export.export_parser(), sppnet.cli.export.verify_parser()"
    )
    code = f"import sys, {modules}; {parsers}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_boxes_writes_one_vector_per_image(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "sub").mkdir()
    Image.effect_noise((64, 96), 60).save(images / "sub" / "b.png")
    (images / "sub" / "c.png").write_bytes(b"no image")
    (images / "paths.csv").write_text("path\nsub/b.png\nsub/gone.png\na.png\n")
    base = ["features", *OPTIONS, "--dtype", "float32"]
    assert run([*base, str(images), "--out", str(images / "all"), "--draw", "1"]) == 1
    assert "sub/c.png: not an image" in capsys.readouterr().err
    assert (images / "all" / "pictures" / "00000-a.png").is_file()
    assert run([*base, "--list", str(images / "paths.csv"), "--out", str(images / "listed")]) == 1
    assert "sub/gone.png: no such file" in capsys.readouterr().err
    assert features(images, "--dtype", "float32", "--on-bad", "drop") == 0
    whole, listed = ({item.image: item for item in read_features(images / out)} for out in ("all", "listed"))
    assert list(whole) == ["a.png", "sub/b.png"]
    assert list(listed) == ["sub/b.png", "a.png"]
    assert all(torch.equal(whole[name].vectors, listed[name].vectors) for name in whole)
    assert whole["a.png"].boxes.tolist() == [[0, 0, 80, 64]]
    assert whole["a.png"].vectors.shape == (1, 256)


def test_boxes_of_several_given_images(images: Path) -> None:
    Image.effect_noise((64, 96), 60).save(images / "b.png")
    command = ["features", str(images / "a.png"), str(images / "b.png"), *OPTIONS, "--on-bad", "drop"]
    assert run([*command, "--boxes", str(images / "boxes.csv"), "--out", str(images / "out")]) == 0
    assert [(item.image, len(item.ids)) for item in read_features(images / "out")] == [("a.png", 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--box-format", "xyxy"], "box_format: expected no value without --boxes, got xyxy"),
        (["--on-bad", "drop"], "on_bad: expected no value without --boxes, got drop"),
        (["--cell-rule", "roi_pool"], "cell_rule: expected paper or released without --boxes, got roi_pool"),
        (["--boxes", "b.csv", "s3://b/c"], "images: expected one URL with --boxes, got 2 names"),
    ],
)
def test_rejects_options_that_do_not_go_together(
    images: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [options.pop(), "s3://b/a"] if "://" in options[-1] else [str(images)]
    assert run(["features", *names, "--out", str(images / "out"), *OPTIONS, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (images / "out").exists()
