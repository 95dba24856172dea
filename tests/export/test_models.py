"""ONNX files: the same numbers as torch at sizes that were never traced, and none that is wrong."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sppnet import Classifier, ClassifierConfig, create_backbone, region_pyramid_pool
from sppnet.cli.main import run
from sppnet.ops import library
from sppnet.training.run import save_run

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
onnx_ops = pytest.importorskip("sppnet.ops.onnx")

from sppnet.export import models as export_module  # noqa: E402
from sppnet.export.models import ExportError, export_classifier, export_regions  # noqa: E402
from sppnet.export.verify import verify  # noqa: E402

CLASSES = ("ash", "birch", "cedar")


def build(name: str = "test_resnet", **options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(CLASSES, name, **options), create_backbone(name, None, None)).eval()


@pytest.fixture(scope="module", autouse=True)
def _without_shape_checks() -> Iterator[None]:
    """While a graph is made a size is a symbol, which is no int to those who check types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return build(levels=(6, 3, 2, 1))


@pytest.fixture(scope="module")
def folder(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and the files that the commands make of it."""
    folder = tmp_path_factory.mktemp("export")
    save_run(model, folder / "run")
    asked = {"plain": [], "pixels": ["--with-preprocessing"], "regions": ["--regions", "--levels", "4,2,1"]}
    for name, options in asked.items():
        out = str(folder / f"{name}.onnx")
        assert run(["export", str(folder / "run"), "--out", out, "--sizes", "6", *options]) == 0
    return folder


def session(path: Path) -> Any:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


class Pool(nn.Module):
    """The operator alone, on maps or on windows of maps: maxima, then means."""

    def __init__(self, levels: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor, windows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        highest, mean = (library.pool(x, windows, self.levels, "adaptive", reduce) for reduce in ("max", "avg"))
        return highest, mean


def write_pool(module: Pool, path: Path, *more: str) -> Any:
    names = ["x", *more]
    torch.onnx.export(
        module.eval(),
        (torch.zeros(2, 3, 9, 11), torch.tensor([[0, 1, 2, 5, 6], [1, 0, 0, 11, 9]]))[: len(names)],
        path,
        input_names=names,
        dynamic_shapes=({0: "n", 2: "h", 3: "w"}, {0: "k"})[: len(names)],
        custom_translation_table=onnx_ops.translations(),
        verbose=False,
        external_data=False,
    )
    return session(path)


def assert_pooled(found: list[Any], expected: tuple[Tensor, Tensor]) -> None:
    """Maxima bit for bit, means but for their rounding."""
    np.testing.assert_array_equal(found[0], expected[0].numpy())
    assert found[1].shape == expected[1].shape
    np.testing.assert_allclose(found[1], expected[1].numpy(), rtol=0, atol=1e-6)


def test_the_maximum_of_a_map_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    """Every side to 20, smaller than the levels too, for levels that nest, that do not, and that come twice."""
    module = Pool(((6, 6), (3, 3), (4, 6), (2, 3), (1, 1), (6, 6), (5, 2)))
    file = write_pool(module, tmp_path / "pool.onnx")
    for height in range(1, 21):
        x = torch.randn(2, 3, height, 21 - height)
        assert_pooled(file.run(None, {"x": x.numpy()}), module(x))


def test_windows_may_leave_the_map_and_there_may_be_none(tmp_path: Path) -> None:
    module = Pool(((4, 4), (2, 2), (3, 1), (1, 1)))
    file = write_pool(module, tmp_path / "pool.onnx", "windows")
    rng = np.random.default_rng(0)
    for count in [0, 1, *[20] * 20]:
        height, width = rng.integers(1, 12, 2)
        corners = np.sort(rng.integers(-6, 18, (count, 2, 2)), axis=1).reshape(count, 4)
        windows = torch.from_numpy(np.concatenate([rng.integers(0, 2, (count, 1)), corners], axis=1))
        x = torch.randn(2, 3, height, width)
        assert_pooled(file.run(None, {"x": x.numpy(), "windows": windows.numpy()}), module(x, windows))


def test_grids_are_cut_from_the_map_only_where_they_must() -> None:
    assert onnx_ops._roots([(6, 6), (3, 3), (2, 2), (1, 1)], "max") == [(6, 6)]
    assert onnx_ops._roots([(1, 1), (4, 4), (6, 6), (4, 4)], "max") == [(6, 6), (4, 4)]
    assert onnx_ops._roots([(2, 3), (4, 3), (3, 4)], "max") == [(4, 3), (3, 4)]
    assert onnx_ops._roots([(1, 1), (4, 4), (1, 1)], "avg") == [(4, 4), (1, 1)]


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (333, 2), (31, 33), (97, 98), (160, 160), (200, 77)])
def test_logits_of_any_size_and_batch(folder: Path, model: Classifier, size: tuple[int, int]) -> None:
    file = session(folder / "plain.onnx")
    for count in (1, 2, 5):
        x = torch.randn(count, 3, *size)
        with torch.inference_mode():
            expected = model(x).numpy()
        np.testing.assert_allclose(file.run(None, {"image": x.numpy()})[0], expected, rtol=1e-4, atol=1e-5)


def test_a_file_with_preprocessing_takes_decoded_pixels(folder: Path, model: Classifier) -> None:
    """The probabilities are those of predict."""
    rng = np.random.default_rng(0)
    for size in ((40, 90), (97, 61), (3, 5)):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        (logits,) = session(folder / "pixels.onnx").run(None, {"image": pixels[None]})
        found = dict(zip(CLASSES, torch.from_numpy(logits)[0].softmax(0).tolist(), strict=True))
        assert found == pytest.approx(dict(model.predict(Image.fromarray(pixels))[0].top), abs=1e-5)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 50), (7, 3)])
def test_regions_are_those_of_the_operator(folder: Path, model: Classifier, counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = torch.randn(2, model.backbone.channels, 7, 9)
    boxes = []
    for count in counts:
        corners = np.sort(rng.uniform(-100, 400, (count, 2, 2)), axis=1).reshape(count, 4)
        boxes.append(torch.from_numpy(corners.astype(np.float32)))
    offset = model.backbone.geometry.offset(224, 288)
    expected = region_pyramid_pool(x, boxes, (4, 2, 1), 1 / 32, offset=offset, on_bad="clip")
    inputs = {"map": x.numpy(), "boxes": torch.cat(boxes).numpy(), "images": np.repeat([0, 1], counts)}
    (found,) = session(folder / "regions.onnx").run(None, inputs)
    assert found.shape == (sum(counts), model.backbone.channels * 21)
    np.testing.assert_array_equal(found, expected.numpy())


def test_regions_ask_for_the_size_where_the_first_cells_place_depends_on_it(tmp_path: Path) -> None:
    model = build("tf_mobilenetv3_small_minimal_100", levels=(2, 1))
    assert export_regions(model, tmp_path / "m.onnx", sizes=60).worst == 0
    assert [one.name for one in session(tmp_path / "m.onnx").get_inputs()] == ["map", "boxes", "images", "size"]


@pytest.mark.parametrize("name", ["plain", "pixels", "regions"])
def test_only_standard_operators_and_free_sizes(folder: Path, name: str) -> None:
    file = onnx.load(folder / f"{name}.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert [(one.domain, one.version >= 18) for one in file.opset_import] == [("", True)]
    assert {node.domain for node in _nodes(file.graph)} == {""}
    assert not file.functions
    shapes = {
        one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in file.graph.input
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


def test_metadata(folder: Path) -> None:
    found = {name: _metadata(folder / f"{name}.onnx") for name in ("plain", "pixels", "regions")}
    assert found["plain"] == {
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
    assert found["pixels"] == {
        **found["plain"],
        "preprocessing": True,
        "layout": "NHWC",
        "range": "0..255",
    }
    assert found["regions"]["task"] == "regions"
    assert found["regions"]["levels"] == [4, 2, 1]
    assert found["regions"]["cell_rule"] == "paper"


def _metadata(path: Path) -> dict[str, Any]:
    return {one.key: json.loads(one.value) for one in onnx.load(path).metadata_props}


def test_a_wrong_translation_leaves_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Bins that end a cell too early, as bins do whose end is rounded down."""
    cut = onnx_ops._cut

    def early(begin: Any, end: Any, bins: int) -> Any:
        begins, ends = cut(begin, end, bins)
        one = onnx_ops._integers(onnx_ops.op, 1)
        return begins, onnx_ops.op.Max(onnx_ops.op.Sub(ends, one), onnx_ops.op.Add(begins, one))

    monkeypatch.setattr(onnx_ops, "_cut", early)
    assert run(["export", str(folder / "run"), "--out", str(tmp_path / "wrong.onnx"), "--sizes", "20"]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    message = captured.err.replace("\n", " ")
    assert "wrong.onnx was not written: wrong at" in message
    assert re.search(r"of 20 sizes: 1 x 600: off by 0\.\d+ of the largest number", message)
    assert list(tmp_path.iterdir()) == []


def test_verify_lists_each_size_at_which_file_and_run_differ(
    folder: Path, model: Classifier, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        other = build(levels=(6, 3, 2, 1))
        with torch.no_grad():
            other.head.fc.bias += 0.1  # type: ignore[union-attr, operator]
    save_run(other, tmp_path / "other")
    arguments = ["verify", str(folder / "plain.onnx"), str(tmp_path / "other"), "--sizes", "5"]
    assert run([*arguments, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert len(content["mismatches"]) == content["sizes"] == 5
    assert content["mismatches"][0]["size"] == [1, 1]
    assert content["worst"] == max(one["error"] for one in content["mismatches"])
    assert run(arguments) == 1
    table = capsys.readouterr().out
    assert "wrong by more than 1e-04" in table
    assert "1 x 600" in table
    assert run([*arguments, "--tolerance", "100"]) == 0


def test_verify_passes_the_files_of_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("plain", "pixels", "regions"):
        assert run(["verify", str(folder / f"{name}.onnx"), str(folder / "run"), "--sizes", "24", "--json"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert content["mismatches"] == []
        assert content["worst"] < 1e-5


def test_a_file_that_fails_or_has_another_shape_is_wrong(folder: Path, model: Classifier, tmp_path: Path) -> None:
    file = onnx.load(folder / "plain.onnx")
    file.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 600
    onnx.save(file, tmp_path / "fixed.onnx")
    report = verify(tmp_path / "fixed.onnx", model, 5)
    assert [one.size for one in report.mismatches] == [(1, 1), (1, 600), (2, 3), report.mismatches[3].size]
    assert "onnxruntime failed: " in report.mismatches[0].reason
    assert report.worst == float("inf")
    two = dataclasses.replace(model.config, classes=("ash", "birch"))
    file = onnx.load(folder / "plain.onnx")
    next(one for one in file.metadata_props if one.key == "classes").value = json.dumps(two.classes)
    onnx.save(file, tmp_path / "three.onnx")
    report = verify(tmp_path / "three.onnx", Classifier(two, model.backbone).eval(), 1)
    assert re.search(r"wrong at 1 of 1 sizes: 1 x 1: shape \((\d), 3\) where the model has \(\1, 2\)", report.summary())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "{run}", "--out", "{}/nowhere/m.onnx"], 2, "path: no such folder"),
        (["export", "{run}", "--out", "{}/m.onnx", "--levels", "2,1"], 2, "--levels is for --regions"),
        (["export", "{run}", "--out", "{}/m.onnx", "--regions", "--with-preprocessing"], 2, "not images"),
        (["export", "{run}", "--out", "{}/m.onnx", "--sizes", "0"], 2, "sizes: expected at least 1 size"),
        (["export", "{}/none", "--out", "{}/m.onnx"], 2, "no such folder"),
        (["verify", "{}/none.onnx", "{run}"], 2, "file: no such file"),
        (["verify", "{run}/run.json", "{run}"], 2, "is not an ONNX file that onnxruntime reads"),
        (["verify", "{pool}", "{run}"], 2, "was not written by `sppnet export`"),
        (["verify", "{newer}", "{run}"], 2, "has format 2; this version reads 1"),
        (["verify", "{plain}", "imagenet"], 2, "it has 3 classes (ash, birch, cedar, ...), the run has 1000 (tench"),
        (["verify", "{regions}", "imagenet"], 2, "the run's are those of tf_efficientnet_lite0, stage None"),
        (["verify", "{plain}", "{run}", "--sizes", "0"], 2, "sizes: expected at least 1 size"),
    ],
)
def test_wrong_arguments_say_what_to_do(
    arguments: list[str],
    code: int,
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = onnx.load(folder / "plain.onnx")
    next(one for one in file.metadata_props if one.key == "format").value = "2"
    onnx.save(file, tmp_path / "newer.onnx")
    del file.metadata_props[:]
    onnx.save(file, tmp_path / "pool.onnx")
    places = {name: str(folder / f"{name}.onnx") for name in ("plain", "regions")}
    places |= {"run": str(folder / "run"), "newer": str(tmp_path / "newer.onnx"), "pool": str(tmp_path / "pool.onnx")}
    assert run([text.format(tmp_path, **places) for text in arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert not captured.out
    assert not list(tmp_path.glob("m.onnx*"))


def test_models_that_a_file_cannot_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="rule: a file for every image size needs 'adaptive'; got 'caffe'"):
        export_classifier(build(rule="caffe"), tmp_path / "m.onnx")
    with pytest.raises(TypeError, match=r"expected float32 weights; got torch.float64; .float\(\) converts"):
        export_classifier(build().double(), tmp_path / "m.onnx")
    monkeypatch.setattr(export_module, "_MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="one ONNX file holds 2 GB"):
        export_classifier(build(), tmp_path / "m.onnx")


def test_a_network_that_torch_cannot_follow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is the first line of what went wrong at the bottom; training mode is left as it was."""

    def fail(*_: Any, **__: Any) -> None:
        raise torch.onnx.OnnxExporterError("step 1 failed") from ValueError("a size asked for\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    model = build().train()
    with pytest.raises(ExportError, match=r"torch cannot follow this network at every size: a size asked for$"):
        export_classifier(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    assert all(part.training for part in model.modules())


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, folder: Path, model: Classifier) -> None:
    monkeypatch.setattr("sppnet.export.verify.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r'need onnxruntime: pip install "sppnet\[export\]"'):
        verify(folder / "plain.onnx", model)
    with pytest.raises(ModuleNotFoundError, match="need onnx, onnxscript, onnxruntime: pip"):
        export_regions(model, folder / "m.onnx")


def test_the_ten_lines_of_the_manual(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes((folder / "pixels.onnx").read_bytes())
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["label"] in CLASSES


def openvino_model(path: Path) -> Any:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    return core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 32), (97, 33), (160, 160), (40, 301), (224, 224)])
def test_openvino_gives_the_same_logits(folder: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    inputs = {
        "plain": rng.standard_normal((2, 3, *size), dtype=np.float32),
        "pixels": rng.integers(0, 256, (2, *size, 3), dtype=np.uint8),
    }
    for name, image in inputs.items():
        (expected,) = session(folder / f"{name}.onnx").run(None, {"image": image})
        (found,) = openvino_model(folder / f"{name}.onnx")({"image": image}).values()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_openvino_pools_maps_smaller_than_the_levels(tmp_path: Path) -> None:
    module = Pool(((6, 6), (3, 3), (2, 2), (1, 1)))
    write_pool(module, tmp_path / "pool.onnx")
    file = openvino_model(tmp_path / "pool.onnx")
    for height in range(1, 15):
        x = torch.randn(2, 3, height, 15 - height)
        assert_pooled(list(file({"x": x.numpy()}).values()), module(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zf5", "overfeat5", "tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_100"])
def test_other_networks(name: str, tmp_path: Path) -> None:
    """Pools that round up, normalisation within channels, padding that depends on the size."""
    assert export_classifier(build(name, levels=(6, 3, 2, 1)), tmp_path / "m.onnx", sizes=40).worst < 1e-4


@pytest.mark.slow
def test_the_embedded_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "imagenet.onnx")
    assert run(["export", "imagenet", "--out", out, "--with-preprocessing"]) == 0
    assert capsys.readouterr().out.count("\n") < 10
    assert run(["verify", out, "imagenet", "--sizes", "60"]) == 0
