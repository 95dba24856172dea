import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sppnet.backbones.backbone import create_backbone
from sppnet.inference.tiles import Span, tile_spans
from sppnet.segment import tiles
from sppnet.segment.model import Segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.segment.options import View
from sppnet.segment.tiles import image_context, segment_tiled, segment_to_file, tile_stride
from sppnet.segment.views import pixel_probabilities
from tests.helpers.tile_blocks import PredictTile, collect_blocks
from tests.helpers.tiny_segmenter import smooth_image, tiny_segmenter

varied_segmenter = partial(tiny_segmenter, gain=1.5)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return varied_segmenter()


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_tiles_start_at_multiples_of_the_output_stride(stride: int) -> None:
    assert tile_stride(tiny_segmenter(output_stride=stride)) == stride


@pytest.mark.parametrize("options", [{}, {"head": "pspnet"}, {"head": "deeplabv3", "output_stride": 8}])
def test_image_within_one_tile_matches_a_pass_over_the_whole_image(options: dict[str, Any]) -> None:
    model, image = varied_segmenter(**options), smooth_image(150, 180)
    expected = pixel_probabilities(model, image).argmax(0)
    assert len(expected.unique()) > 1
    assert segment_tiled(model, image, View(tile=192)).equal(expected.byte())


@pytest.mark.parametrize("size", [(224, 256), (203, 250), (193, 241)])
@pytest.mark.parametrize("backbone", ["resnet10t", "tf_efficientnet_lite0"])
def test_tiles_match_the_whole_image_away_from_their_borders(backbone: str, size: tuple[int, int]) -> None:
    # Receptive fields reach 16 pixels; the second network uses TensorFlow's SAME padding, which depends on the size.
    config = SegmenterConfig(("a", "b"), backbone, "deeplabv3", output_stride=4, rates=(1,), image_level=False, width=8)
    torch.manual_seed(0)
    model = Segmenter(config, create_backbone(backbone, 1, "none")).eval()
    image = smooth_image(*size)
    down, across = (tile_spans(side, 160, 48, tile_stride(model)) for side in size)
    interior = torch.ones(size, dtype=torch.bool)
    for spans, axis in ((down, interior), (across, interior.T)):
        for border in (spans[1][0], spans[0][1]):
            axis[border - 16 : border + 16] = False
    with torch.inference_mode():
        tiled = collect_blocks(down, across, tiles._tile_predictor(model, image, View()))
    assert len(down) == len(across) == 2
    assert interior.float().mean() > 0.4
    expected = pixel_probabilities(model, image)[:, interior]
    torch.testing.assert_close(tiled[:, interior], expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_global_context_of_the_whole_image_is_used_in_every_tile(model: Segmenter) -> None:
    image = smooth_image(160, 300)
    context = image_context(model, image)
    assert context.equal(model.context_of(model.pixels(image)))
    tile = Image.Image.crop(image, (0, 0, 128, 160))
    probabilities = tiles._tile_predictor(model, image, View(global_context=True))((0, 160), (0, 128))
    assert probabilities.equal(model(model.pixels(tile), context)[0].softmax(0))
    assert not probabilities.allclose(model(model.pixels(tile))[0].softmax(0), atol=1e-3)
    local, contextual = (
        segment_tiled(model, image, View(tile=192, overlap=32, global_context=value)) for value in (False, True)
    )
    assert not local.equal(contextual)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tiles_have_float32_probabilities_in_every_dtype(dtype: torch.dtype) -> None:
    model = varied_segmenter().to(dtype)
    predict = tiles._tile_predictor(model, smooth_image(64, 64), View(global_context=True))
    assert predict((0, 64), (0, 64)).dtype == torch.float32


def test_global_context_is_computed_from_a_copy_of_at_most_1024_pixels(model: Segmenter) -> None:
    image = smooth_image(60, 2048)
    reduced = image.resize((1024, 30), Image.Resampling.BILINEAR, reducing_gap=2)
    assert image_context(model, image).equal(model.context_of(model.pixels(reduced)))


def test_rejects_global_context_without_an_image_level_branch() -> None:
    model = varied_segmenter(head="pspnet")
    with pytest.raises(ValueError, match="context: expected a model whose ASPP has an image-level branch"):
        segment_tiled(model, smooth_image(40, 40), View(tile=128, overlap=0, global_context=True))


def test_files_match_segmentation_in_memory(model: Segmenter, tmp_path: Path) -> None:
    image = smooth_image(250, 300)
    view = View(tile=128, overlap=32)
    expected = segment_tiled(model, image, view)
    path = tmp_path / "new" / "a.npy"
    assert segment_to_file(model, image, path, view, tmp_path / "p.npy") == 0
    assert json.loads(path.with_name("a.npy.json").read_text())["rows"] == 3
    labels, probabilities = np.load(path), np.load(tmp_path / "p.npy")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected)
    assert (probabilities.dtype, probabilities.shape) == (np.float16, (3, 250, 300))
    np.testing.assert_allclose(probabilities.sum(0, dtype=np.float32), 1, atol=2e-3)
    assert (probabilities.argmax(0) == labels).mean() > 0.99
    assert sorted(file.name for file in tmp_path.rglob("*.npy*")) == ["a.npy", "a.npy.json", "p.npy"]


def test_labels_of_300_classes_have_16_bits(tmp_path: Path) -> None:
    model, image = varied_segmenter(classes=tuple(map(str, range(300)))), smooth_image(200, 100)
    with torch.no_grad():
        model.head.classify[-1].bias[255:] += 100  # type: ignore[index]
    segment_to_file(model, image, tmp_path / "a.npy", View(tile=192))
    labels = np.load(tmp_path / "a.npy")
    assert labels.dtype == np.uint16
    assert labels.max() > 255
    np.testing.assert_array_equal(labels, segment_tiled(model, image, View(tile=192)))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from sppnet.segment import tiles
from sppnet.segment.options import View
from tests.helpers.tiny_segmenter import smooth_image, tiny_segmenter
torch.set_num_threads(1)
write, remaining = tiles._write_block, int(sys.argv[3])
def write_or_die(*arguments):
    global remaining
    if remaining == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    remaining -= 1
    write(*arguments)
tiles._write_block = write_or_die
folder = Path(sys.argv[2])
tiles.segment_to_file(
    tiny_segmenter(gain=1.5), smooth_image(500, 300), folder / "a.npy", View(tile=128, overlap=32), folder / "p.npy"
)
"""


def test_resumes_after_a_kill_with_the_same_labels(model: Segmenter, tmp_path: Path) -> None:
    image = smooth_image(500, 300)  # 6 x 4 tiles
    view = View(tile=128, overlap=32)
    segment_to_file(model, image, tmp_path / "uninterrupted.npy", view, tmp_path / "q.npy")
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[2]), str(tmp_path), "14"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "a.npy.json").read_text())["rows_done"] == 3
    assert not (tmp_path / "a.npy").exists()
    computed = []
    predict = tiles._tile_predictor(model, image, view)

    def record(*_: object) -> PredictTile:
        def recorded(rows: Span, columns: Span) -> Tensor:
            computed.append(rows)
            return predict(rows, columns)

        return recorded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_tile_predictor", record)
        resumed = segment_to_file(model, image, tmp_path / "a.npy", view, tmp_path / "p.npy")
    assert resumed == 3
    assert len(computed) == (1 + 3) * 4  # the third row again, and the remaining rows
    for name, expected in (("a", "uninterrupted"), ("p", "q")):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), np.load(tmp_path / f"{expected}.npy"))


def test_resumes_at_the_row_where_a_call_stopped(model: Segmenter, tmp_path: Path) -> None:
    image = smooth_image(220, 160)  # 3 x 2 tiles
    view = View(tile=128, overlap=32)
    expected = segment_tiled(model, image, view)
    for fatal in range(1, 7):
        passes: list[int] = []

        def stop(*_: object, fatal: int = fatal, passes: list[int] = passes) -> None:
            passes.append(1)
            if len(passes) == fatal:
                raise KeyboardInterrupt

        path, completed = tmp_path / f"{fatal}.npy", (fatal - 1) // 2
        hook = model.register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            segment_to_file(model, image, path, view)
        assert not path.exists()
        passes.append(1)  # past the fatal pass: the hook does not stop the next call
        before = len(passes)
        assert segment_to_file(model, image, path, view) == completed
        assert len(passes) - before == 6 - 2 * max(completed - 1, 0)
        hook.remove()
        np.testing.assert_array_equal(np.load(path), expected)


def test_kill_between_renaming_the_two_files_loses_neither(
    model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, probabilities = smooth_image(200, 100), tmp_path / "p.npy"
    segment_to_file(model, image, tmp_path / "a.npy", View(tile=192), probabilities)
    before = probabilities.read_bytes()
    probabilities.rename(tmp_path / "p.npy.part")
    monkeypatch.setattr(tiles, "blend_tiles", None)
    assert segment_to_file(model, image, tmp_path / "a.npy", View(tile=192), probabilities) == 2
    assert probabilities.read_bytes() == before


def test_second_call_returns_without_a_pass(model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth_image(200, 100)
    segment_to_file(model, image, tmp_path / "a.npy", View(memory=10**12))
    monkeypatch.setattr(tiles, "blend_tiles", None)
    assert segment_to_file(model, image, tmp_path / "a.npy", View(memory=10**12)) == 1
    (tmp_path / "a.npy").unlink()
    with pytest.raises(TypeError, match="not callable"):
        segment_to_file(model, image, tmp_path / "a.npy", View(memory=10**12))


@pytest.mark.parametrize("changed", ["image", "weights", "config", "tile", "overlap", "context", "probabilities"])
def test_different_image_model_or_option_starts_from_scratch(changed: str, model: Segmenter, tmp_path: Path) -> None:
    image, path = smooth_image(200, 100), tmp_path / "a.npy"
    view = View(tile=192, overlap=32)
    segment_to_file(model, image, path, view)
    assert segment_to_file(model, image, path, view) == 2
    if changed == "image":
        image.putpixel((99, 199), (1, 2, 3))
    if changed == "weights":
        model = varied_segmenter(1)
    if changed == "config":
        model = varied_segmenter(upsample="resize")
    changes: dict[str, dict[str, Any]] = {
        "tile": {"tile": 224},
        "overlap": {"overlap": 0},
        "context": {"global_context": True},
    }
    view = replace(view, **changes.get(changed, {}))
    probabilities = tmp_path / "p.npy" if changed == "probabilities" else None
    assert segment_to_file(model, image, path, view, probabilities) == 0
    np.testing.assert_array_equal(np.load(path), segment_tiled(model, image, view))


def test_unreadable_progress_starts_from_scratch(model: Segmenter, tmp_path: Path) -> None:
    image, path = smooth_image(40, 40), tmp_path / "a.npy"
    view = View(tile=192)
    segment_to_file(model, image, path, view)
    progress = json.loads((tmp_path / "a.npy.json").read_text())
    without_request = json.dumps({name: value for name, value in progress.items() if name != "of"})
    for text in ("", "[]", '{"rows_done": 1}', "null", without_request):
        (tmp_path / "a.npy.json").write_text(text)
        assert segment_to_file(model, image, path, view) == 0


@pytest.mark.parametrize("view", [View(), View(memory=10**12, flip=True)])
def test_requires_a_memory_limit_or_a_tile_side(view: View, model: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="view: expected a memory limit or a tile side, and a single scale, got View"):
        segment_to_file(model, smooth_image(8, 8), tmp_path / "a.npy", view)
