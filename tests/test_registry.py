"""Loading of run folders: the ImageNet classifier, damaged or unfinished runs, and wrong tasks, formats and weights."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from sppnet import (
    Classifier,
    ClassifierConfig,
    Detector,
    DetectorConfig,
    RegionEncoderConfig,
    SegmenterConfig,
    create_backbone,
    create_segmenter,
    imagenet_classifier,
    load,
    save,
)
from sppnet.io.files import write_json
from sppnet.registry import TASKS, load_classifier


@pytest.fixture(scope="module")
def model() -> Classifier:
    config = ClassifierConfig(("a", "b", "c"), "test_resnet", 2, (2,))
    return Classifier(config, create_backbone("test_resnet", 2, None))


@pytest.fixture
def run(model: Classifier, tmp_path: Path) -> Path:
    save(model, tmp_path / "runs" / "first")
    return tmp_path / "runs" / "first"


def change_config(run: Path, **config: Any) -> None:
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    content["config"].update(config)
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")


def test_imagenet_loads_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = load_classifier("imagenet")
    assert len(model.config.classes) == 1000
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 40, 50)).shape == (1, 1000)
    save(model, tmp_path / "copy")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(load(tmp_path / "copy")(x), imagenet_classifier()(x))


def test_folder_named_imagenet_takes_precedence(
    model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(model, "imagenet")
    assert load("imagenet").config == model.config


def test_load_classifier_rejects_other_tasks(model: Classifier, run: Path, tmp_path: Path) -> None:
    assert load_classifier(run).config == model.config
    save(create_segmenter(SegmenterConfig(("sky", "sea"), width=8), None), tmp_path / "a")
    detector = Detector(DetectorConfig(("cat", "dog"), "spp", "zf5", levels=(1,)), create_backbone("zf5", None, None))
    save(detector, tmp_path / "b")
    for name, task in (("a", "segmenter"), ("b", "detector")):
        with pytest.raises(ValueError, match=f"run: expected a classifier, got a {task}: .*{name}"):
            load_classifier(tmp_path / name)


def test_rejects_folders_that_are_not_finished_runs(run: Path) -> None:
    with pytest.raises(ValueError, match=r"run: expected a folder .*, or 'imagenet', got .*nothing; no such folder"):
        load(run.parent / "nothing")
    with pytest.raises(ValueError, match=r"got imagnet; no such folder; did you mean imagenet\?"):
        load("imagnet")
    with pytest.raises(ValueError, match=r"got .*runs; it has no run\.json"):
        load(run.parent)
    with pytest.raises(ValueError, match=r"got .*frist; no such folder; did you mean first\?"):
        load(run.parent / "frist")
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"run: .*first has no model\.safetensors: its training has not finished"):
        load(run)


@pytest.mark.parametrize("text", ["", "{", "\x00", '{"format": 1,}'])
def test_rejects_invalid_json(run: Path, text: str) -> None:
    (run / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is damaged or was not written by this program"):
        load(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"run\.json is damaged or was not written by this program"),
        (
            {"format": 1, "task": "segmnet", "config": {}},
            "run: expected one of the tasks .* got 'segmnet'; did you mean segment",
        ),
        ({"format": 1, "task": ["classify"], "config": {}}, "run: expected one of the tasks .* in .*run.json, got"),
        (
            {"format": 2, "task": "classify", "more": 1},
            r"run: expected format 1 in .*run\.json, got 2; another version",
        ),
        ({"task": "classify", "config": {}}, r"run: expected format 1 in .*run\.json, got None"),
        ({"format": 1, "task": "classify"}, r"run\.json is damaged .*`object`, got `null`"),
        ({"format": 1, "task": "classify", "config": {}}, r"run\.json is damaged .*required field `classes`"),
        ({"format": 1, "task": "classify", "config": {"classes": ["a"], "depth": 3}}, "has unknown fields: depth"),
    ],
)
def test_rejects_unknown_tasks_formats_and_fields(run: Path, content: Any, message: str, unchecked: None) -> None:
    write_json(content, run / "run.json")
    with pytest.raises(ValueError, match=message):
        load(run)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": "resnet81"}, "does not describe a classifier: .*'resnet81'"),
        ({"stage": 9}, "does not describe a classifier: stage: .*test_resnet"),
        ({"levels": [3, 0]}, r"does not describe a classifier: levels\[1\]: expected at least 1 bin"),
        ({"classes": ["a", "b", "a"]}, "does not describe a classifier: classes: expected one or more"),
        ({"resize": "wrap"}, "does not describe a classifier: .*native"),
        ({"backbone": None}, r"is damaged .*`str`, got `null` - at `\$.backbone`"),
        ({"levels": "321"}, r"is damaged .*at `\$.levels`"),
        ({"levels": [3, "x"]}, r"is damaged .*at `\$.levels\[1\]`"),
        ({"head": "cosine"}, "is damaged .*'cosine'"),
        ({"max_pixels": "many"}, r"is damaged .*`int`, got `str` - at `\$.max_pixels`"),
    ],
)
def test_invalid_config_value_names_the_file(run: Path, config: dict[str, Any], message: str, unchecked: None) -> None:
    change_config(run, **config)
    with pytest.raises(ValueError, match=rf"run\.json {message}"):
        load(run)


def test_table_of_tasks_matches_the_configurations() -> None:
    assert all(task.config.task == name for name, task in TASKS.items())
    assert [task.noun for task in TASKS.values()] == ["classifier", "detector", "segmenter", "region encoder"]


@pytest.mark.parametrize(
    "config",
    [
        ClassifierConfig(("Öl", "b"), "test_resnet", 2, (3, (1, 2)), "avg", trained_sides=(180, 224)),
        DetectorConfig(("a",), "fast", "zf5", levels=(2,), hidden=(8,), scorer="softmax", regression="fc"),
        SegmenterConfig(("a", "b"), "resnet18", width=8, rates=(2, 3), table=(("a", 0, (1, 2, 3)), ("b", 7, None))),
        RegionEncoderConfig("zf5", levels=((2, 1), 1), scales=(64, 96)),
    ],
)
def test_models_of_all_tasks_are_restored_with_their_configuration(config: Any, tmp_path: Path) -> None:
    model = TASKS[config.task].create(config, None).eval()
    save(model, tmp_path)
    restored = load(tmp_path)
    assert (type(restored), restored.config) == (type(model), model.config)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in restored.state_dict().items())
    assert not any(module.training for module in restored.modules())


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
