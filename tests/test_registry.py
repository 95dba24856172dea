"""Loading of run folders: the ImageNet classifier, damaged or unfinished runs, and wrong tasks, formats and weights."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from sppnet import Classifier, ClassifierConfig, Detector, DetectorConfig, create_backbone, imagenet_classifier, load
from sppnet.io.files import write_json
from sppnet.registry import load_classifier
from sppnet.segment.model import SegmenterConfig, create_segmenter
from sppnet.training.run import save_run


@pytest.fixture(scope="module")
def model() -> Classifier:
    config = ClassifierConfig(("a", "b", "c"), "test_resnet", 2, (2,))
    return Classifier(config, create_backbone("test_resnet", 2, None))


@pytest.fixture
def run(model: Classifier, tmp_path: Path) -> Path:
    save_run(model, tmp_path / "runs" / "first")
    return tmp_path / "runs" / "first"


def change_config(run: Path, **config: Any) -> None:
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    content["config"].update(config)
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")


def test_imagenet_loads_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = load("imagenet")
    assert len(model.config.classes) == 1000
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 40, 50)).shape == (1, 1000)
    save_run(model, tmp_path / "copy")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(load(tmp_path / "copy")(x), imagenet_classifier()(x))


def test_folder_named_imagenet_takes_precedence(
    model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(model, "imagenet")
    assert load("imagenet").config == model.config


def test_load_classifier_rejects_other_tasks(model: Classifier, run: Path, tmp_path: Path) -> None:
    assert load_classifier(run).config == model.config
    save_run(create_segmenter(SegmenterConfig(("sky", "sea"), width=8), None), tmp_path / "a")
    detector = Detector(DetectorConfig(("cat", "dog"), "spp", "zf5", levels=(1,)), create_backbone("zf5", None, None))
    save_run(detector, tmp_path / "b")
    for name, task in (("a", "segmenter"), ("b", "detector")):
        with pytest.raises(ValueError, match=f"run: expected a classifier, got a {task}: .*{name}"):
            load_classifier(tmp_path / name)


def test_rejects_folders_that_are_not_finished_runs(run: Path) -> None:
    with pytest.raises(ValueError, match=r"run: expected a folder .*, or 'imagenet', got .*nothing; no such folder"):
        load(run.parent / "nothing")
    with pytest.raises(ValueError, match="got imagnet; no such folder"):
        load("imagnet")
    with pytest.raises(ValueError, match=r"got .*runs; it has no run\.json"):
        load(run.parent)
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"run: .*first has no model\.safetensors: its training has not finished"):
        load(run)


@pytest.mark.parametrize("text", ["", "{", "\x00", '{"format": 1,}'])
def test_rejects_invalid_json(run: Path, text: str) -> None:
    (run / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run: .*run\.json is not JSON"):
        load(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"run: expected task 'classify' or 'detect' or 'segment' in .*run\.json, got None"),
        ({"format": 1, "task": "sing", "config": {}}, "run: expected task .* got 'sing'"),
        ({"format": 2, "task": "classify", "config": {}}, r"run: expected format 1 in .*run\.json, got 2"),
        ({"task": "classify", "config": {}}, r"run: expected format 1 in .*run\.json, got None"),
        ({"format": 1, "task": "classify"}, r"run\.json does not describe a model of task 'classify': 'config'"),
        ({"format": 1, "task": "classify", "config": {}}, "does not describe a model of task 'classify': .*'classes'"),
        ({"format": 1, "task": "classify", "config": {"classes": ["a"], "depth": 3}}, "does not describe .*'depth'"),
    ],
)
def test_rejects_unknown_tasks_formats_and_fields(run: Path, content: Any, message: str, unchecked: None) -> None:
    write_json(content, run / "run.json")
    with pytest.raises(ValueError, match=message):
        load(run)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": "resnet81"}, "'resnet81'"),
        ({"backbone": None}, "NoneType"),
        ({"stage": 9}, "stage: .*test_resnet"),
        ({"levels": "321"}, "levels: expected a sequence"),
        ({"levels": [3, "x"]}, r"levels\[1\]: expected an integer or a pair"),
        ({"head": "cosine"}, "head: expected one of"),
        ({"classes": ["a", "b", "a"]}, "classes: expected one or more"),
        ({"resize": "wrap"}, "resize.* native"),
        ({"max_pixels": "many"}, "not supported between"),
    ],
)
def test_invalid_config_value_names_the_file(run: Path, config: dict[str, Any], message: str, unchecked: None) -> None:
    change_config(run, **config)
    with pytest.raises(ValueError, match=rf"run\.json does not describe a model of task 'classify': .*{message}"):
        load(run)


def test_rejects_weights_of_another_model(run: Path) -> None:
    change_config(run, classes=["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"expected shape .* for head.*first/model\.safetensors"):
        load(run)
    change_config(run, classes=["a", "b", "c"], stage=3)
    with pytest.raises(ValueError, match=r"model\.safetensors lacks \d+ of \d+ tensors"):
        load(run)
    change_config(run, stage=1)
    with pytest.raises(ValueError, match=r"model\.safetensors has unexpected tensors"):
        load(run)


def test_rejects_pickles_and_damaged_weights(run: Path) -> None:
    file = run / "model.safetensors"
    intact = file.read_bytes()

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (run / "sprung",)

    torch.save({"weight": torch.zeros(3)}, run / "saved")
    for content in (pickle.dumps(Trap()), (run / "saved").read_bytes(), b"", intact[:50], intact[:-1], intact + b"\0"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
            load(run)
    assert not (run / "sprung").exists()
