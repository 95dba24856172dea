"""Run folders: what is saved comes back to the last bit, and nothing else is taken for a run."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sppnet import Classifier, ClassifierConfig, create_backbone, imagenet_classifier, load
from sppnet.classify.network import Head
from sppnet.io.files import read_tensors, save_tensors, write_json
from sppnet.training.run import save_run


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(
        ("Apfel", "Öl", "鳥"), "test_resnet", 2, (3, (1, 2)), "avg", "caffe", "plain", "warp:64", 12_345
    )
    model = Classifier(config, create_backbone("test_resnet", 2, None))
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))  # in training mode: statistics that are not the first ones
    return model


@pytest.fixture
def run(model: Classifier, tmp_path: Path) -> Path:
    save_run(model, tmp_path / "runs" / "first")
    return tmp_path / "runs" / "first"


def change(run: Path, **config: Any) -> None:
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    content["config"].update(config)
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_run_comes_back_to_the_last_bit(model: Classifier, run: Path) -> None:
    again = load(str(run))
    assert again.config == model.config
    assert not any(module.training for module in again.modules())
    x = torch.randn(2, 3, 64, 80)
    assert torch.equal(again(x), model.eval()(x))
    assert sorted(path.name for path in run.iterdir()) == ["model.safetensors", "run.json"]
    assert '"鳥"' in (run / "run.json").read_text(encoding="utf-8"), "a person can read it"


@pytest.mark.parametrize(("backbone", "head"), [("zf5", "linear"), ("test_convnext", "fc")])
def test_runs_of_other_kinds(backbone: str, head: Head, tmp_path: Path) -> None:
    config = ClassifierConfig(("a", "b"), backbone, levels=(1,), head=head)
    model = Classifier(config, create_backbone(backbone, weights=None)).eval().to(memory_format=torch.channels_last)
    save_run(model, tmp_path)
    x = torch.randn(1, 3, 50, 60)
    torch.testing.assert_close(load(tmp_path)(x), model(x), rtol=1e-5, atol=1e-6)


def test_imagenet_loads_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = load("imagenet")
    assert len(model.config.classes) == 1000
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 40, 50)).shape == (1, 1000)
    save_run(model, tmp_path / "copy")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(load(tmp_path / "copy")(x), imagenet_classifier()(x))


def test_a_folder_called_imagenet_is_a_folder(
    model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(model, "imagenet")
    assert load("imagenet").config == model.config


def test_what_is_no_run_is_named(run: Path) -> None:
    with pytest.raises(ValueError, match=r"run: expected a folder .*, or 'imagenet'; got .*nothing: no such folder"):
        load(run.parent / "nothing")
    with pytest.raises(ValueError, match=r"got imagnet: no such folder"):
        load("imagnet")
    with pytest.raises(ValueError, match=r"got .*runs: it has no run\.json"):
        load(run.parent)
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"run: .*first has no model\.safetensors: its training has not finished"):
        load(run)


@pytest.mark.parametrize("text", ["", "{", "\x00", '{"format": 1,}'])
def test_broken_json_is_named(run: Path, text: str) -> None:
    (run / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run: .*run\.json is not JSON"):
        load(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is of another kind: expected the task 'classify' or 'detect' or 'segment', got None"),
        ({"format": 1, "task": "sing", "config": {}}, "is of another kind: .* got 'sing'"),
        ({"format": 2, "task": "classify", "config": {}}, r"run\.json has format 2; this version reads 1"),
        ({"task": "classify", "config": {}}, r"run\.json has format None; this version reads 1"),
        ({"format": 1, "task": "classify"}, r"run\.json does not describe a model of task 'classify': 'config'"),
        ({"format": 1, "task": "classify", "config": {}}, "does not describe a model of task 'classify': .*'classes'"),
        ({"format": 1, "task": "classify", "config": {"classes": ["a"], "depth": 3}}, "does not describe .*'depth'"),
    ],
)
def test_another_task_and_format_are_refused(run: Path, content: Any, message: str, unchecked: None) -> None:
    write_json(content, run / "run.json")
    with pytest.raises(ValueError, match=message):
        load(run)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": "resnet81"}, "no network is called 'resnet81'; close"),
        ({"backbone": None}, "NoneType"),
        ({"stage": 9}, r"test_resnet has stages 0\.\.4"),
        ({"levels": "321"}, "levels: expected a sequence"),
        ({"levels": [3, "x"]}, r"levels\[1\]: expected an integer or a pair"),
        ({"head": "cosine"}, "head: expected one of"),
        ({"classes": ["a", "b", "a"]}, "classes: expected one or more different names"),
        ({"resize": "wrap"}, "resize policy must be one of"),
        ({"max_pixels": "many"}, "not supported between"),
    ],
)
def test_a_configuration_that_cannot_be_built_names_the_file(
    run: Path, config: dict[str, Any], message: str, unchecked: None
) -> None:
    change(run, **config)
    with pytest.raises(ValueError, match=rf"run\.json does not describe a model of task 'classify': .*{message}"):
        load(run)


def test_weights_of_another_model_are_refused(run: Path) -> None:
    change(run, classes=["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"first/model\.safetensors: 2 tensors have another shape, the first is head"):
        load(run)
    change(run, classes=["a", "b", "c"], stage=3)
    with pytest.raises(ValueError, match=r"model\.safetensors lacks \d+ of \d+ tensors"):
        load(run)
    change(run, stage=1)
    with pytest.raises(ValueError, match=r"model\.safetensors has \d+ tensors that the network has not"):
        load(run)


def test_pickles_and_damaged_weights_are_refused(run: Path) -> None:
    file = run / "model.safetensors"
    whole = file.read_bytes()

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (run / "sprung",)

    torch.save({"weight": torch.zeros(3)}, run / "saved")
    for content in (pickle.dumps(Trap()), (run / "saved").read_bytes(), b"", whole[:50], whole[:-1], whole + b"\0"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
            load(run)
    assert not (run / "sprung").exists()


def test_left_over_parts_do_no_harm(model: Classifier, run: Path) -> None:
    """A process that was killed while it wrote leaves a part; the next write replaces it."""
    for name in ("run.json.part", "model.safetensors.part"):
        (run / name).write_bytes(b"half of ")
    assert load(run).config == model.config
    save_run(model, run)
    assert sorted(path.name for path in run.iterdir()) == ["model.safetensors", "run.json"]


def test_a_write_that_fails_leaves_the_old_file(run: Path) -> None:
    config, weights = (run / "run.json").read_bytes(), (run / "model.safetensors").read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json({"config": object()}, run / "run.json")
    shared = torch.zeros(3)
    with pytest.raises(RuntimeError, match="share memory"):
        save_tensors({"a": shared, "b": shared}, run / "model.safetensors")
    assert (run / "run.json").read_bytes() == config
    assert (run / "model.safetensors").read_bytes() == weights


def test_saving_again_replaces_the_run(model: Classifier, run: Path) -> None:
    other = Classifier(ClassifierConfig(("x", "y"), "test_resnet", 0, (1,)), create_backbone("test_resnet", 0, None))
    save_run(other, run)
    assert load(run).config == other.config


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(3)}
    save_tensors(tensors, tmp_path / "file", {"note": "Öl"})
    found, metadata = read_tensors(tmp_path / "file")
    assert metadata == {"note": "Öl"}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert load_file(tmp_path / "file").keys() == tensors.keys()
    save_file(tensors, tmp_path / "bare")
    assert read_tensors(tmp_path / "bare")[1] == {}
