"""ONNX files of classifiers and of region pooling, compared with torch at sizes that were not traced."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet import Classifier, ClassifierConfig, create_classifier, region_pyramid_pool
from sppnet.cli.main import run
from tests.helpers.classifiers import build_classifier
from tests.helpers.openvino_model import openvino_model

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
onnx_ops = pytest.importorskip("sppnet.ops.onnx")

from sppnet.export import models as export_module  # noqa: E402
from sppnet.export.models import ExportError, export_classifier, export_regions  # noqa: E402
from sppnet.export.verify import verify  # noqa: E402

CLASSES = ("ash", "birch", "cedar")


def session(path: Path) -> Any:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (333, 2), (31, 33), (97, 98), (160, 160), (200, 77)])
def test_logits_match_at_any_size_and_batch(folder: Path, model: Classifier, size: tuple[int, int]) -> None:
    file = session(folder / "plain.onnx")
    for count in (1, 2, 5):
        x = torch.randn(count, 3, *size)
        with torch.inference_mode():
            expected = model(x).numpy()
        np.testing.assert_allclose(file.run(None, {"image": x.numpy()})[0], expected, rtol=1e-4, atol=1e-5)


def test_pyramids_of_several_stages_match(tmp_path: Path) -> None:
    model = build_classifier(levels=(2, 1), stages=(1, 2))
    assert not export_classifier(model, tmp_path / "stages.onnx", num_sizes=8).mismatches


@pytest.mark.parametrize(("name", "shape"), [("plain", (0, 3, 97, 61)), ("pixels", (0, 97, 61, 3))])
def test_empty_batch_gives_no_logits(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    images = np.zeros(shape, np.uint8 if name == "pixels" else np.float32)
    (logits,) = session(folder / f"{name}.onnx").run(None, {"image": images})
    assert logits.shape == (0, len(CLASSES))


@pytest.mark.parametrize("function", [export_classifier, export_regions])
def test_export_and_verification_do_not_change_the_model(function: Any, tmp_path: Path) -> None:
    model = build_classifier(head="fc")
    x = torch.randn(1, 3, 97, 64)
    before = model(x)
    function(model, tmp_path / "model.onnx", num_sizes=1)
    assert torch.equal(model(x), before)  # evaluation mode: dropout would change the logits
    model.train()
    model.backbone.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    function(model, tmp_path / "model.onnx", num_sizes=1)
    verify(tmp_path / "model.onnx", model, num_sizes=1)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_file_with_preprocessing_accepts_pixels(folder: Path, model: Classifier) -> None:
    rng = np.random.default_rng(0)
    for size in ((40, 90), (97, 61), (3, 5)):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        (logits,) = session(folder / "pixels.onnx").run(None, {"image": pixels[None]})
        probabilities = dict(zip(CLASSES, torch.from_numpy(logits)[0].softmax(0).tolist(), strict=True))
        assert probabilities == pytest.approx(dict(model.predict(Image.fromarray(pixels))[0].top), abs=1e-5)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 50), (7, 3)])
def test_region_vectors_equal_the_operator(folder: Path, model: Classifier, counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = torch.randn(2, model.backbone.channels, 7, 9)
    boxes = []
    for count in counts:
        corners = np.sort(rng.uniform(-100, 400, (count, 2, 2)), axis=1).reshape(count, 4)
        boxes.append(torch.from_numpy(corners.astype(np.float32)))
    offset = model.backbone.geometry.offset(224, 288)
    expected = region_pyramid_pool(x, boxes, (4, 2, 1), 1 / 32, offset=offset, on_bad="clip")
    inputs = {"map": x.numpy(), "boxes": torch.cat(boxes).numpy(), "images": np.repeat([0, 1], counts)}
    (vectors,) = session(folder / "regions.onnx").run(None, inputs)
    assert vectors.shape == (sum(counts), model.backbone.channels * 21)
    np.testing.assert_array_equal(vectors, expected.numpy())


def test_regions_have_a_size_input_if_the_offset_depends_on_the_size(tmp_path: Path) -> None:
    model = build_classifier("tf_mobilenetv3_small_minimal_100", levels=(2, 1))
    assert export_regions(model, tmp_path / "m.onnx", num_sizes=60).worst == 0
    assert [item.name for item in session(tmp_path / "m.onnx").get_inputs()] == ["map", "boxes", "images", "size"]


@pytest.mark.parametrize("name", ["plain", "pixels", "regions"])
def test_files_have_standard_operators_and_dynamic_sizes(folder: Path, name: str) -> None:
    file = onnx.load(folder / f"{name}.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert [(opset.domain, opset.version >= 18) for opset in file.opset_import] == [("", True)]
    assert {node.domain for node in _nodes(file.graph)} == {""}
    assert not file.functions
    shapes = {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in file.graph.input
    }
    assert (
        shapes
        == {
            "plain": {"image": ["batch", 3, "height", "width"]},
            "pixels": {"image": ["batch", "height", "width", 3]},
            "regions": {"map": ["batch", 96, "rows", "columns"], "boxes": ["boxes", 4], "images": ["boxes"]},
        }[name]
    )


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def test_metadata_describe_input_and_model(folder: Path) -> None:
    metadata = {name: _metadata(folder / f"{name}.onnx") for name in ("plain", "pixels", "regions")}
    assert metadata["plain"] == {
        "format": 1,
        "sppnet": "0.1.0",
        "task": "classify",
        "preprocessing": False,
        "layout": "NCHW",
        "colour": "RGB",
        "range": "(pixel / 255 - mean) / std",
        "classes": ["ash", "birch", "cedar"],
        "resize": "native",
        "max_pixels": 1_000_000,
        "interpolation": "bilinear",
        "smallest": [1, 1],
        "largest": None,
        "backbone": "test_resnet",
        "stage": None,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "levels": [6, 3, 2, 1],
        "reduce": "max",
        "stride": [32, 32],
        "offset": [0.0, 0.0],
    }
    assert metadata["pixels"] == {
        **metadata["plain"],
        "preprocessing": True,
        "layout": "NHWC",
        "range": "0..255",
    }
    assert metadata["regions"]["task"] == "regions"
    assert metadata["regions"]["levels"] == [4, 2, 1]
    assert metadata["regions"]["cell_rule"] == "paper"


def _metadata(path: Path) -> dict[str, Any]:
    return {item.key: json.loads(item.value) for item in onnx.load(path).metadata_props}


def test_wrong_translation_leaves_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Bins end one cell too early, as if their end were rounded down."""
    cut = onnx_ops._cut

    def early(begin: Any, end: Any, bins: int) -> Any:
        begins, ends = cut(begin, end, bins)
        one = onnx_ops._integers(onnx_ops.op, 1)
        return begins, onnx_ops.op.Max(onnx_ops.op.Sub(ends, one), onnx_ops.op.Add(begins, one))

    monkeypatch.setattr(onnx_ops, "_cut", early)
    assert run(["export", str(folder / "run"), "--out", str(tmp_path / "wrong.onnx"), "--num-sizes", "20"]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    message = captured.err.replace("\n", " ")
    assert "wrong.onnx was not written: file and model differ at" in message
    assert re.search(r"of 20 sizes: 1 x 600: relative difference 0\.\d+", message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--out", "{}/nowhere/m.onnx"], "path: expected a file in an existing folder, got"),
        (["{run}", "--out", "{}/m.onnx", "--num-sizes", "0"], "num_sizes: expected at least 1, got 0"),
        (["{}/none", "--out", "{}/m.onnx"], "no such folder"),
    ],
)
def test_rejects_wrong_arguments(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", *(text.format(tmp_path, run=folder / "run") for text in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert not captured.out
    assert not list(tmp_path.iterdir())


def test_rejects_models_that_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="rule: expected 'adaptive', got 'caffe'"):
        export_classifier(build_classifier(rule="caffe"), tmp_path / "m.onnx")
    with pytest.raises(TypeError, match=r"model: expected float32 weights, got torch.float64; convert with .float\(\)"):
        export_classifier(build_classifier().double(), tmp_path / "m.onnx")
    monkeypatch.setattr(export_module, "_MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"model: expected at most 2 GB of weights, got 0.0 GB"):
        export_classifier(build_classifier(), tmp_path / "m.onnx")


def test_failed_export_reports_the_innermost_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.onnx.OnnxExporterError("step 1 failed") from ValueError("data-dependent size\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    model = build_classifier().train()
    with pytest.raises(ExportError, match=r"cannot export this network with dynamic image sizes: data-dependent size$"):
        export_classifier(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    assert all(module.training for module in model.modules())


def test_code_in_the_documentation_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes((folder / "pixels.onnx").read_bytes())
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["label"] in CLASSES


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 32), (97, 33), (160, 160), (40, 301), (224, 224)])
def test_logits_match_in_openvino(folder: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    inputs = {
        "plain": rng.standard_normal((2, 3, *size), dtype=np.float32),
        "pixels": rng.integers(0, 256, (2, *size, 3), dtype=np.uint8),
    }
    for name, image in inputs.items():
        (expected,) = session(folder / f"{name}.onnx").run(None, {"image": image})
        (logits,) = openvino_model(folder / f"{name}.onnx")({"image": image}).values()
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zf5", "overfeat5", "tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_100"])
def test_other_networks_match(name: str, tmp_path: Path) -> None:
    """Networks with ceil-mode pooling, local response normalization, and padding that depends on the size."""
    assert (
        export_classifier(build_classifier(name, levels=(6, 3, 2, 1)), tmp_path / "m.onnx", num_sizes=40).worst < 1e-4
    )


@pytest.mark.slow
def test_embedded_network_matches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "imagenet.onnx")
    assert run(["export", "imagenet", "--out", out, "--with-preprocessing"]) == 0
    assert capsys.readouterr().out.count("\n") < 10
    assert run(["verify", out, "imagenet", "--num-sizes", "60"]) == 0


def test_refuses_networks_that_need_multiples(tmp_path: Path) -> None:
    model = create_classifier(ClassifierConfig(classes=("a", "b"), backbone="test_vit"), weights=None)
    with pytest.raises(ExportError, match="images of any size, got test_vit, which takes multiples of 16 pixels"):
        export_classifier(model, tmp_path / "model.onnx")
