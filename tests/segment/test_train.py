"""Segmenters from a data set to answers, through the commands as a user types them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sppnet
from sppnet.cli.main import run
from sppnet.data.formats.masks import IGNORE, PixelCounts, count_pixels, read_raw
from sppnet.data.formats.segmentation import read_segmentation
from sppnet.data.images import load_image
from sppnet.inference.memory import settled_bytes
from sppnet.segment.evaluate import evaluate_segmenter, scores_of
from sppnet.segment.model import Segmenter
from sppnet.segment.options import SegmentOptions
from sppnet.segment.predict import answer_stems
from sppnet.segment.train import class_weights, pixel_objective, train_segmenter
from sppnet.segment.views import View, pixel_probabilities
from tests.helpers.segmentation_data import write_shapes

OPTIONS = SegmentOptions(width=16, crop=(48, 64), epochs=2, batch=3, rates=(1, 2))
QUICK = ["--width", "16", "--crop", "48,64", "--batch", "3", "--rates", "1,2", "--lr", "0.005", "--scale", "0.8,1.2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", "camvid", {"train": 10, "val": 4})


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segment") / "run"
    assert run(["train", "segment", str(data), "--out", str(out), *QUICK, "--epochs", "12"]) == 0
    return out


@pytest.fixture(scope="module")
def model(trained: Path) -> Segmenter:
    found = sppnet.load(trained)
    assert isinstance(found, Segmenter)
    return found


def test_a_segmenter_learns_shapes_from_ten_images(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(trained), str(data), "--split", "val", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores.keys() >= {"miou", "pixel_accuracy", "per_class", "failures", "images"}
    assert list(scores["per_class"]) == list(read_segmentation(data, "val").classes)
    assert scores["images"] == 4
    assert scores["miou"] > 0.7
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert lines[-1]["val_miou"] == pytest.approx(scores["miou"], abs=1e-6)
    assert lines[-1]["train_pixel_accuracy"] > lines[0]["train_pixel_accuracy"]


def test_a_table_of_scores_and_pictures(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(trained), str(data), "--split", "val", "--scales", "1,1.5", "--flip"]
    assert run([*command, "--pictures", str(tmp_path / "pictures")]) == 0
    assert "mean IoU" in capsys.readouterr().out
    assert list((tmp_path / "pictures").iterdir())


def test_a_prediction_is_a_palette_an_overlay_and_json(
    trained: Path, model: Segmenter, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, bad, out = data / "val" / "val_0.png", tmp_path / "bad.png", tmp_path / "out"
    bad.write_bytes(b"no image")
    again = tmp_path / "val_0.bmp"
    load_image(image).save(again)
    outputs = ["--output", "palette,overlay,probabilities"]
    assert run(["predict", str(trained), str(image), str(bad), str(again), "--out", str(out), "--json", *outputs]) == 1
    told, err = capsys.readouterr()
    first, second = (json.loads(line) for line in told.splitlines())
    assert "bad.png" in err
    assert (first["source"], first["size"], first["tiles"]) == (str(image), [64, 80], 1)
    assert second["files"]["palette"] == str(out / "val_0-2.png")
    assert sum(first["classes"].values()) == pytest.approx(1)
    probabilities = pixel_probabilities(model, load_image(image))
    with Image.open(first["files"]["palette"]) as mask, Image.open(first["files"]["overlay"]) as overlay:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), probabilities.argmax(0).numpy())
        assert overlay.width >= 80
    kept = np.load(first["files"]["probabilities"])
    assert kept.dtype == np.float16
    np.testing.assert_allclose(kept, probabilities.numpy(), atol=1e-3)


def test_answers_replace_neither_images_nor_each_other(tmp_path: Path) -> None:
    names = ["a.png", "b/a.jpg", "a_overlay.jpg", "c.jpg"]
    stems = answer_stems([tmp_path / name for name in names], tmp_path)
    assert [stem.name for stem in stems] == ["a-2", "a-3", "a_overlay", "c"]


def test_predictions_without_a_folder_write_nothing(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["predict", str(trained), str(data / "val"), "--tile", "64", "--overlap", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("%" in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_an_image_in_tiles(trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = data / "val" / "val_0.png"
    for name, options in (("whole", []), ("tiles", ["--tile", "64", "--overlap", "16"])):
        assert run(["predict", str(trained), str(image), "--out", str(tmp_path / name), "--json", *options]) == 0
    whole, tiles = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (whole["tiles"], tiles["tiles"]) == (1, 2)
    masks = [read_raw(one["files"]["palette"]) for one in (whole, tiles)]
    assert (masks[0] == masks[1]).mean() > 0.9
    assert sorted(file.name for file in (tmp_path / "tiles").iterdir()) == ["val_0.png", "val_0_overlay.png"]
    command = ["evaluate", str(trained), str(data), "--split", "val", "--json", "--tile", "64", "--overlap", "16"]
    assert run([*command, "--global-context"]) == 0
    assert json.loads(capsys.readouterr().out)["miou"] > 0.5


def test_answers_of_scales_are_averaged(model: Segmenter) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    one = pixel_probabilities(model, image)
    torch.testing.assert_close(one.sum(0), torch.ones(40, 50))
    flipped = pixel_probabilities(model, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).flip(2)
    torch.testing.assert_close(pixel_probabilities(model, image, flip=True), (one + flipped) / 2)
    larger = pixel_probabilities(model, image, (1.0, 2.0))
    assert larger.shape == one.shape
    torch.testing.assert_close(2 * larger - one, pixel_probabilities(model, image, (2.0,)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales: expected factors in 0.1..10"),
        ({"scales": (0.05,)}, "scales: expected factors in 0.1..10"),
        ({"tile": 64, "flip": True}, "tile: tiles are looked at once each; leave scales and flip out"),
    ],
)
def test_wrong_views_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        View(**options)  # type: ignore[arg-type]


def test_several_views_that_do_not_fit_are_refused(model: Segmenter) -> None:
    with pytest.raises(
        ValueError, match=r"memory: 300 x 300 pixels at scales .* raise it, or leave scales and flip out"
    ):
        View(flip=True, memory=1000).in_tiles(model, Image.new("RGB", (300, 300)))


@pytest.mark.parametrize("layout", ["voc", "pairs"])
def test_other_layouts(layout: str, tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "data", layout, {"train": 3, "val": 1})  # type: ignore[arg-type]
    training = train_segmenter(root, tmp_path / "run", replace(OPTIONS, epochs=1))
    assert training.finished
    assert training.scores is not None
    assert 0 <= training.scores.miou <= 1


def test_a_last_batch_of_one_image_is_trained_on(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "data", "camvid", {"train": 4})
    training = train_segmenter(root, tmp_path / "run", replace(OPTIONS, epochs=1))
    assert training.finished
    assert training.scores is None
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["train_loss"] > 0
    assert train_segmenter(root, tmp_path / "one", replace(OPTIONS, epochs=1, batch=1)).finished


def test_an_undisturbed_and_a_killed_run_have_the_same_weights(data: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=3)
    train_segmenter(data, tmp_path / "whole", options)
    script = (
        "import sys; from sppnet.segment.train import train_segmenter; from tests.segment.test_train import OPTIONS;"
        "from dataclasses import replace; train_segmenter(sys.argv[1], sys.argv[2], replace(OPTIONS, epochs=3))"
    )
    out = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(data), str(out)], env=environment, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "model.safetensors").exists()
    assert train_segmenter(data, out, options, resume=True).finished
    whole, killed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_bad_masks_are_named_and_left_out(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    Image.new("L", (80, 64), 9).save(root / "trainannot" / "train_0.png")
    Image.new("L", (8, 6)).save(root / "trainannot" / "train_1.png")
    (root / "trainannot" / "train_2.png").write_bytes(b"")
    assert run(["train", "segment", str(root), "--out", str(tmp_path / "run"), *QUICK, "--epochs", "1"]) == 0
    told = capsys.readouterr().err
    assert "train_0.png" in told
    assert "9 (5120 pixels)" in told
    assert "6 x 8" in told
    assert "train_2.png" in told
    for file in (root / "valannot").iterdir():
        Image.new("L", (80, 64), 7).save(file)
    with pytest.raises(
        ValueError, match=r"no pixel that counts in the 0 images .* 4 cannot be used: .*7 \(5120 pixels\)"
    ):
        evaluate_segmenter(sppnet.load(tmp_path / "run"), read_segmentation(root, "val"))  # type: ignore[arg-type]


def test_a_class_file_holds_for_training_validation_and_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_shapes(tmp_path / "data", "camvid", {"train": 4, "val": 2}, class_file=False)
    true = read_segmentation(root, "val", ["background", "disc", "square"])
    counts = count_pixels(true.samples, true.labels).pixels.tolist()
    for file in [*(root / "trainannot").iterdir(), *(root / "valannot").iterdir()]:
        Image.fromarray(read_raw(file).astype(np.uint8) + 1).save(file)
    table = tmp_path / "classes.csv"
    table.write_text("name,id\nbackground,1\ndisc,2\nsquare,3\n")
    out = tmp_path / "run"
    command = ["train", "segment", str(root), "--out", str(out), *QUICK, "--epochs", "1", "--classes", str(table)]
    assert run(command) == 0
    capsys.readouterr()
    for more in ([], ["--classes", str(table)]):
        assert run(["evaluate", str(out), str(root), "--split", "val", "--json", *more]) == 0
        pixels = json.loads(capsys.readouterr().out)["pixels"]
        assert pixels == dict(zip(("background", "disc", "square"), counts, strict=True))
    table.write_text("name,id\nsquare,1\ndisc,2\nbackground,3\n")
    assert run([*command, "--resume"]) == 2
    assert "a resumed training keeps" in " ".join(capsys.readouterr().err.split())


def test_wrong_masks_for_validation_are_told_before_the_training(data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    for file in (root / "valannot").iterdir():
        Image.new("L", (80, 64), 7).save(file)
    with pytest.raises(ValueError, match=r"none of the 4 masks of .* can be used: .*7 \(5120 pixels\)"):
        train_segmenter(root, tmp_path / "run", OPTIONS)
    assert not (tmp_path / "run").exists()


def test_an_image_that_asks_for_too_much_memory_does_not_end_the_others(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = tmp_path / "huge.png"
    Image.new("L", (9000, 9000)).save(huge)
    memory = f"{settled_bytes() // 10**6 + 700}MB"
    images = [str(huge), str(data / "val" / "val_0.png")]
    assert run(["predict", str(trained), *images, "--memory", memory, "--json"]) == 1
    told, err = capsys.readouterr()
    assert [json.loads(line)["source"] for line in told.splitlines()] == [str(data / "val" / "val_0.png")]
    assert f"memory: {memory} are not enough to decode" in " ".join(err.split())


def test_no_usable_mask_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_shapes(tmp_path / "data", "camvid", {"train": 2})
    for file in (root / "trainannot").iterdir():
        Image.new("L", (80, 64), 200).save(file)
    assert run(["train", "segment", str(root), "--out", str(tmp_path / "run"), *QUICK]) == 2
    assert "none of the 2 masks of" in " ".join(capsys.readouterr().err.split())


def test_scores_of_a_confusion_matrix() -> None:
    table = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    scores = scores_of(table, ("a", "b", "c"))
    assert scores.per_class == {"a": pytest.approx(6 / 9), "b": pytest.approx(3 / 6), "c": None}
    assert scores.miou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert scores.pixel_accuracy == pytest.approx(9 / 12)
    assert scores.mean_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert scores.pixels == {"a": 8, "b": 4, "c": 0}


def test_class_weights() -> None:
    counts = PixelCounts(torch.tensor([900, 100, 0]), torch.tensor([1000, 200, 0]), [])
    assert class_weights(counts, "none").tolist() == [1, 1, 1]
    root = class_weights(counts, "root")
    assert float(root[1] / root[0]) == pytest.approx(3)
    median = class_weights(counts, "median")  # frequencies 0.9 and 0.5
    assert float(median[1] / median[0]) == pytest.approx(0.9 / 0.5)
    for weights in (root, median):
        assert float(weights[:2] @ torch.tensor([0.9, 0.1])) == pytest.approx(1)
        assert float(weights[2]) == 1


def test_ignored_pixels_do_not_count_in_the_loss() -> None:
    objective = pixel_objective(torch.tensor([1.0, 3.0]))
    logits = torch.randn(2, 2, 4, 5, requires_grad=True)
    masks = torch.randint(0, 2, (2, 4, 5))
    masks[0, :2] = IGNORE
    loss, right = objective(logits, masks)
    counted = masks != IGNORE
    terms = torch.nn.functional.cross_entropy(logits, masks.clamp(min=0), reduction="none")[counted]
    weight = torch.tensor([1.0, 3.0])[masks[counted]]
    torch.testing.assert_close(loss, (terms * weight).sum() / weight.sum())
    assert right == pytest.approx(2 * float((logits.argmax(1) == masks)[counted].float().mean()))
    nothing, right = objective(logits, torch.full_like(masks, IGNORE))
    assert (float(nothing.detach()), right) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "deeplab"}, "head: expected one of .*; got 'deeplab'"),
        ({"context": "ppm", "head": "pspnet"}, "context: only deeplabv3plus has a choice"),
        ({"rates": (0,)}, "rates: expected spacings of at least 1"),
        ({"rates": (6,), "context": "none"}, "rates: .* a head with ASPP"),
        ({"crop": (0, 5)}, "crop: expected a height and a width of at least 1 pixel"),
        ({"scale": (2.0, 1.0)}, "scale: expected 0 < least <= greatest <= 10"),
        ({"jitter": 1.0}, r"jitter: expected a share in \[0, 1\)"),
        ({"output_stride": 4}, "output_stride: expected 8, 16 or 32; got 4"),
        ({"head": "deeplabv2", "norm": "group"}, "norm: deeplabv2 is a sum of convolutions and has none"),
        ({"workers": -1}, "workers: expected at least 0; got -1"),
        ({"schedule": "polly"}, "schedule: expected one of .*; got 'polly'; did you mean 'poly'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentOptions(**options)  # type: ignore[arg-type]


def test_rates_are_fitted_to_the_crop() -> None:
    classes = ("a", "b")
    assert SegmentOptions(crop=(256, 320)).config(classes).rates == (2, 5, 7)
    assert SegmentOptions(crop=(1024, 1024)).config(classes).rates == (6, 12, 18)
    assert SegmentOptions(head="pspnet").config(classes).rates == ()


def test_options_of_other_tasks_are_refused(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(trained), str(data / "val"), "--views", "10"]) == 2
    assert "views: an option for classifiers" in capsys.readouterr().err
    assert run(["evaluate", str(trained), str(data), "--split", "val", "--svd", "4,4"]) == 2
    assert "svd: an option for detectors" in capsys.readouterr().err
    assert run(["evaluate", "imagenet", str(data), "--flip"]) == 2
    assert "flip: an option for segmenters; imagenet holds a classifier" in " ".join(capsys.readouterr().err.split())
