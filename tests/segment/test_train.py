import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sppnet.cli.main import run
from sppnet.data.formats.class_tables import CAMVID, CAMVID_COLOURS
from sppnet.data.formats.mask_values import read_raw
from sppnet.data.formats.masks import IGNORE, LabelMap, PixelCounts, count_pixels
from sppnet.data.formats.segmentation import read_segmentation
from sppnet.data.splits import hold_out
from sppnet.registry import load
from sppnet.segment.evaluate import evaluate_segmenter
from sppnet.segment.model import Segmenter, create_segmenter
from sppnet.segment.options import SegmentOptions
from sppnet.segment.train import (
    _class_colors,
    class_weights,
    final_layers,
    pixel_objective,
    segmenter_config,
    train_segmenter,
)
from tests.helpers.segmentation_data import write_shapes
from tests.helpers.tiny_segmenter import COMMAND_OPTIONS, HEADS, OPTIONS, tiny_segmenter


@pytest.mark.parametrize("layout", ["voc", "pairs"])
def test_trains_on_all_layouts(layout: str, tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "data", layout, {"train": 3, "val": 1})  # type: ignore[arg-type]
    training = train_segmenter(root, tmp_path / "run", replace(OPTIONS, epochs=1))
    assert training.finished
    assert training.scores.keys() == {"miou", "pixel_accuracy", "mean_accuracy"}
    assert all(0 <= score <= 1 for score in training.scores.values())


def test_trains_on_single_images_and_without_validation(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "data", "camvid", {"train": 4})
    training = train_segmenter(root, tmp_path / "run", replace(OPTIONS, epochs=1))
    assert training.finished
    assert training.scores == {}
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["train_loss"] > 0
    assert train_segmenter(root, tmp_path / "one", replace(OPTIONS, epochs=1, batch=1)).finished


KILLED = """
import os, signal
from sppnet.segment.options import SegmentOptions
from sppnet.segment.train import train_segmenter
from sppnet.training import loop
save_checkpoint = loop.save_checkpoint
def save_and_die(*arguments):
    save_checkpoint(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
loop.save_checkpoint = save_and_die
train_segmenter({data!r}, {out!r}, {options!r})
"""


def test_resuming_a_killed_training_gives_the_weights_of_an_uninterrupted_one(dataset: Path, tmp_path: Path) -> None:
    options, out = replace(OPTIONS, epochs=3, batch=2, ema=0.5, accumulate=2, patience=2), tmp_path / "killed"
    train_segmenter(dataset, tmp_path / "whole", options)
    script = KILLED.format(data=str(dataset), out=str(out), options=options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    assert train_segmenter(dataset, out, options, resume=True).finished
    whole, killed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_resuming_a_finished_training_only_validates(dataset: Path, tmp_path: Path) -> None:
    out, options = (
        tmp_path / "run",
        replace(OPTIONS, epochs=2, ema=0.5, accumulate=2, warmup_epochs=1, label_smoothing=0.1),
    )
    training = train_segmenter(dataset, out, options)
    files = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "options.json"}
    assert {path.name for path in files} - {"last.safetensors"} == {
        "metrics.csv", "metrics.jsonl", "model.safetensors", "run.json"
    }  # fmt: skip
    assert train_segmenter(dataset, out, options, resume=True).scores == training.scores
    assert files == {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "options.json"}


def test_frozen_backbone_keeps_its_weights_and_statistics(dataset: Path, tmp_path: Path) -> None:
    train_segmenter(dataset, tmp_path / "run", replace(OPTIONS, epochs=1, train_stages="0"))
    model = load(tmp_path / "run")
    assert isinstance(model, Segmenter)
    expected = create_segmenter(model.config).state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, expected[name])}
    assert any(name.startswith("head.") for name in changed)
    assert not any(name.startswith("backbone.") for name in changed)


@pytest.mark.parametrize("head", HEADS)
def test_final_layers_are_those_whose_size_depends_on_the_classes(head: dict[str, Any]) -> None:
    models = [tiny_segmenter(classes=classes, **head) for classes in (("a", "b"), ("a", "b", "c"))]
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in models]
    final = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    assert {name for name in shapes[0] if name.startswith(final_layers(models[0]))} == final


def test_reports_and_skips_bad_masks(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(dataset, tmp_path / "data")
    Image.new("L", (80, 64), 9).save(root / "trainannot" / "train_0.png")
    Image.new("L", (8, 6)).save(root / "trainannot" / "train_1.png")
    (root / "trainannot" / "train_2.png").write_bytes(b"")
    assert run(["train", "segment", str(root), "--out", str(tmp_path / "run"), *COMMAND_OPTIONS, "--epochs", "1"]) == 0
    report = capsys.readouterr().err
    for text in ("train_0.png", "9 (5120 pixels)", "6 x 8", "train_2.png"):
        assert text in report


def test_class_file_applies_to_training_validation_and_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_shapes(tmp_path / "data", "camvid", {"train": 4, "val": 2}, class_file=False)
    original = read_segmentation(root, "val", ["background", "disc", "square"])
    counts = count_pixels(original.samples, original.labels).pixels.tolist()
    for file in [*(root / "trainannot").iterdir(), *(root / "valannot").iterdir()]:
        Image.fromarray(read_raw(file).astype(np.uint8) + 1).save(file)
    table = tmp_path / "classes.csv"
    table.write_text("name,id\nbackground,1\ndisc,2\nsquare,3\n")
    out = tmp_path / "run"
    command = ["train", "segment", str(root), "--out", str(out), "--epochs", "1", "--classes", str(table)]
    command += COMMAND_OPTIONS
    assert run(command) == 0
    capsys.readouterr()
    for options in ([], ["--classes", str(table)]):
        assert run(["evaluate", str(out), str(root), "--split", "val", "--json", *options]) == 0
        pixels = json.loads(capsys.readouterr().out)["pixels"]
        assert pixels == dict(zip(("background", "disc", "square"), counts, strict=True))
    table.write_text("name,id\nsquare,1\ndisc,2\nbackground,3\n")
    assert run([*command, "--resume"]) == 2
    assert "as when the training in" in " ".join(capsys.readouterr().err.split())


def test_rejects_bad_validation_masks_before_training(dataset: Path, tmp_path: Path) -> None:
    root = shutil.copytree(dataset, tmp_path / "data")
    for file in (root / "valannot").iterdir():
        Image.new("L", (80, 64), 7).save(file)
    with pytest.raises(ValueError, match=r"none of the 4 masks of .* can be used: .*7 \(5120 pixels\)"):
        train_segmenter(root, tmp_path / "run", OPTIONS)
    assert not (tmp_path / "run").exists()


def test_rejects_data_without_usable_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_shapes(tmp_path / "data", "camvid", {"train": 2})
    for file in (root / "trainannot").iterdir():
        Image.new("L", (80, 64), 200).save(file)
    assert run(["train", "segment", str(root), "--out", str(tmp_path / "run"), *COMMAND_OPTIONS]) == 2
    assert "none of the 2 masks of" in " ".join(capsys.readouterr().err.split())


def test_validation_folder_of_splits_uses_its_validation_or_test_split(tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=1)
    write_shapes(tmp_path / "train", "camvid", {"train": 2})
    for splits, pixels in (({"train": 1, "valid": 2, "test": 1}, 2), ({"train": 1, "test": 3}, 3)):
        root = write_shapes(tmp_path / f"val{pixels}", "camvid", splits)
        training = train_segmenter(tmp_path / "train", tmp_path / f"run{pixels}", options, val=root)
        model = load(training.run)
        assert isinstance(model, Segmenter)
        expected = evaluate_segmenter(model, root, split="valid" if "valid" in splits else "test")
        assert len(expected.samples) == pixels
        assert training.scores["miou"] == expected.scores.miou
    root = write_shapes(tmp_path / "only", "camvid", {"train": 1})
    with pytest.raises(ValueError, match=r"split: expected one of train for .*only, got none"):
        train_segmenter(tmp_path / "train", tmp_path / "run", options, val=root)


def test_rejects_a_batch_with_a_single_value_per_channel(tmp_path: Path) -> None:
    """Batch norm cannot train on one image whose map is one cell."""
    root = write_shapes(tmp_path / "data", "camvid", {"train": 4}, size=(1, 1))
    options = replace(OPTIONS, epochs=1, crop=(1, 1), batch=3)
    message = r"crop: expected more than one cell of 16 x 16 pixels, .* \(4 images in batches of 3\), got \(1, 1\)"
    with pytest.raises(ValueError, match=message):
        train_segmenter(root, tmp_path / "run", options)
    with pytest.warns(UserWarning, match="ASPP: on a map of 1 x 1 cells"):
        assert train_segmenter(root, tmp_path / "run", replace(options, batch=2)).finished


def test_rates_are_fitted_to_the_crop() -> None:
    classes = ("a", "b")
    assert segmenter_config(SegmentOptions(crop=(256, 320)), classes).rates == (2, 5, 7)
    assert segmenter_config(SegmentOptions(crop=(1024, 1024)), classes).rates == (6, 12, 18)
    assert segmenter_config(SegmentOptions(head="pspnet"), classes).rates == ()


def test_configuration_has_the_options_of_the_architecture() -> None:
    options = SegmentOptions(head="deeplabv3", rates=(3,), width=7, norm="group", ignore=(4,), separable=True)
    config = segmenter_config(options, ("a", "b"), colours=((1, 2, 3), (4, 5, 6)))
    assert (config.classes, config.head, config.rates, config.width) == (("a", "b"), "deeplabv3", (3,), 7)
    assert (config.norm, config.ignore, config.separable) == ("group", (4,), True)
    assert config.colours == ((1, 2, 3), (4, 5, 6))
    assert segmenter_config(SegmentOptions(), ("a",)).ignore == ()


def test_class_weights_are_inversely_related_to_frequency() -> None:
    counts = PixelCounts(torch.tensor([900, 100, 0]), torch.tensor([1000, 200, 0]), [])
    assert class_weights(counts, "none").tolist() == [1, 1, 1]
    root = class_weights(counts, "root")
    assert float(root[1] / root[0]) == pytest.approx(3)
    median = class_weights(counts, "median")  # frequencies 0.9 and 0.5
    assert float(median[1] / median[0]) == pytest.approx(0.9 / 0.5)
    for weights in (root, median):
        assert float(weights[:2] @ torch.tensor([0.9, 0.1])) == pytest.approx(1)
        assert float(weights[2]) == 1


@pytest.mark.parametrize("smoothing", [0, 0.2])
def test_loss_and_accuracy_exclude_ignored_pixels(smoothing: float) -> None:
    objective = pixel_objective(torch.tensor([1.0, 3.0]), smoothing)
    logits = torch.randn(2, 2, 4, 5, requires_grad=True)
    masks = torch.randint(0, 2, (2, 4, 5))
    masks[0, :2] = IGNORE
    loss, correct = objective(logits, masks)
    labeled = masks != IGNORE
    log_p = logits.log_softmax(1).movedim(1, -1)[labeled]
    weights = torch.tensor([1.0, 3.0])
    targets = (1 - smoothing) * torch.nn.functional.one_hot(masks[labeled], 2) + smoothing / 2
    torch.testing.assert_close(loss, -(log_p * targets * weights).sum() / masks.numel())
    assert correct == pytest.approx(2 * float((logits.argmax(1) == masks)[labeled].float().mean()))
    loss, correct = objective(logits, torch.full_like(masks, IGNORE))
    assert (float(loss.detach()), correct) == (0, 0)


def test_camvid_has_its_usual_colors() -> None:
    colors = dict(zip(CAMVID, _class_colors(LabelMap(CAMVID, {})), strict=True))
    assert colors["Road"] == (128, 64, 128)
    assert colors["Bicyclist"] == (0, 128, 192)
    assert len(set(CAMVID_COLOURS)) == 11


def test_colors_are_used_only_if_each_class_has_one() -> None:
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    assert _class_colors(LabelMap(CAMVID[:2], {})) == ()
    assert _class_colors(LabelMap(CAMVID[:2], {}, (), {red: 1, green: IGNORE})) == ()
    assert _class_colors(LabelMap(CAMVID[:2], {}, (), {red: 1, blue: 0, green: IGNORE})) == (blue, red)


def test_holds_out_a_tenth_of_the_images_without_a_validation_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sppnet")
    root = write_shapes(tmp_path / "data", "camvid", {"train": 10})
    options = replace(OPTIONS, epochs=1)
    training = train_segmenter(root, tmp_path / "run", options)
    assert training.scores.keys() == {"miou", "pixel_accuracy", "mean_accuracy"}
    text = (
        "no validation split: validating on 1 of 10 images, chosen with seed 0; use --val none to train on all images"
    )
    assert text in caplog.messages
    assert train_segmenter(root, tmp_path / "run", options, resume=True).scores == training.scores
    with pytest.raises(ValueError, match=r"held_out: expected 1, as when the training in .* started, got 0; "):
        train_segmenter(root, tmp_path / "run", options, resume=True, val="none")
    assert train_segmenter(root, tmp_path / "all", options, val="none").scores == {}
    (held_out,) = hold_out(read_segmentation(root, "train").samples, options.seed)[1]
    held_out.path.write_bytes(held_out.path.read_bytes()[:2000])  # truncated, so that it cannot be scored
    caplog.clear()
    training = train_segmenter(root, tmp_path / "unusable", options)
    assert training.finished
    assert training.scores == {}
    assert not any("--val none" in message for message in caplog.messages)


def test_reports_stated_classes_without_a_pixel(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_shapes(tmp_path / "data", "camvid", {"train": 4})
    with (root / "classes.txt").open("a") as file:
        file.write("gnu\n")
    training = train_segmenter(root, tmp_path / "run", replace(OPTIONS, epochs=1))
    (text,) = (text for text in training.problems if "gnu" in text)
    assert text.endswith("no pixel of gnu; training on this split cannot learn this class")
    assert text in caplog.messages
