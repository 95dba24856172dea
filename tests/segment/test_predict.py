import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.cli.main import run
from sppnet.data.formats.masks import read_raw
from sppnet.data.images import load_image
from sppnet.inference import memory as inference_memory
from sppnet.segment import memory as segment_memory
from sppnet.segment.model import Segmenter
from sppnet.segment.predict import output_stems
from sppnet.segment.views import pixel_probabilities


def test_writes_palette_overlay_and_probabilities(
    trained_run: Path, trained_model: Segmenter, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, bad, out = dataset / "val" / "val_0.png", tmp_path / "bad.png", tmp_path / "out"
    bad.write_bytes(b"no image")
    duplicate = tmp_path / "val_0.bmp"  # same stem
    load_image(image).save(duplicate)
    images, outputs = [str(image), str(bad), str(duplicate)], ["--output", "palette,overlay,probabilities"]
    assert run(["predict", str(trained_run), *images, "--out", str(out), "--json", *outputs]) == 1
    captured = capsys.readouterr()
    first, second = (json.loads(line) for line in captured.out.splitlines())
    assert "bad.png" in captured.err
    assert (first["source"], first["size"], first["tiles"]) == (str(image), [64, 80], 1)
    assert second["files"]["palette"] == str(out / "val_0-2.png")
    assert sum(first["classes"].values()) == pytest.approx(1)
    probabilities = pixel_probabilities(trained_model, load_image(image))
    with Image.open(first["files"]["palette"]) as mask, Image.open(first["files"]["overlay"]) as overlay:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), probabilities.argmax(0).numpy())
        assert overlay.width >= 80
    saved = np.load(first["files"]["probabilities"])
    assert saved.dtype == np.float16
    np.testing.assert_allclose(saved, probabilities.numpy(), atol=1e-3)


def test_result_files_replace_neither_images_nor_each_other(tmp_path: Path) -> None:
    names = ["a.png", "b/a.jpg", "a_overlay.jpg", "c.jpg"]
    stems = output_stems([tmp_path / name for name in names], tmp_path)
    assert [stem.name for stem in stems] == ["a-2", "a-3", "a_overlay", "c"]


def test_prediction_without_an_output_folder_writes_no_files(
    trained_run: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["predict", str(trained_run), str(dataset / "val"), "--tile", "64", "--overlap", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("%" in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_tiled_prediction_matches_the_whole_image(
    trained_run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = dataset / "val" / "val_0.png"
    for name, options in (("whole", []), ("tiles", ["--tile", "64", "--overlap", "16"])):
        assert run(["predict", str(trained_run), str(image), "--out", str(tmp_path / name), "--json", *options]) == 0
    whole, tiles = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (whole["tiles"], tiles["tiles"]) == (1, 2)
    masks = [read_raw(result["files"]["palette"]) for result in (whole, tiles)]
    assert (masks[0] == masks[1]).mean() > 0.9
    assert sorted(file.name for file in (tmp_path / "tiles").iterdir()) == ["val_0.png", "val_0_overlay.png"]
    command = ["evaluate", str(trained_run), str(dataset), "--split", "val", "--json"]
    assert run([*command, "--tile", "64", "--overlap", "16", "--global-context"]) == 0
    assert json.loads(capsys.readouterr().out)["miou"] > 0.5


def test_image_beyond_the_memory_limit_does_not_stop_the_others(
    trained_run: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (inference_memory, segment_memory):
        monkeypatch.setattr(module, "settled_bytes", lambda: 10**9)
    huge = tmp_path / "huge.png"
    Image.new("L", (9000, 9000)).save(huge)
    images = [str(huge), str(dataset / "val" / "val_0.png")]
    assert run(["predict", str(trained_run), *images, "--memory", "1700MB", "--json"]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["source"] for line in captured.out.splitlines()] == [str(dataset / "val" / "val_0.png")]
    assert "huge.png, 9000 x 9000 pixels, got 1700MB" in " ".join(captured.err.split())
