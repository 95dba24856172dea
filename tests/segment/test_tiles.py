import json
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from sppnet.backbones.backbone import create_backbone
from sppnet.inference.tiles import Span, blend_tiles, tile_spans
from sppnet.segment import tiles
from sppnet.segment.model import Segmenter, SegmenterConfig, create_segmenter
from sppnet.segment.tiles import image_context, segment_tiled, segment_to_file, tile_stride
from sppnet.segment.views import pixel_probabilities

Look = Callable[[Span, Span], Tensor]


def segmenter(seed: int = 0, **options: Any) -> Segmenter:
    torch.manual_seed(seed)
    config = SegmenterConfig(
        **{"classes": ("road", "sky", "tree"), "backbone": "test_efficientnet", "width": 16, **options}
    )
    model = create_segmenter(config, "none").eval()
    for parameter in model.parameters():  # random networks give the same class everywhere
        parameter.data.mul_(1.5)
    return model


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return segmenter()


# Strides, tiles and overlaps in strides, and sizes that give up to a dozen tiles.
grids = st.integers(1, 32).flatmap(
    lambda stride: st.integers(0, 4).flatmap(
        lambda overlap: st.integers(2 * overlap + 2, 2 * overlap + 8).flatmap(
            lambda tile: st.tuples(
                st.integers(1, 12 * tile * stride), st.just(tile * stride), st.just(overlap * stride), st.just(stride)
            )
        )
    )
)


@settings(max_examples=300, deadline=None)
@given(grids)
@example((31, 20, 8, 2))  # equal steps would lay the third tile over the first
def test_tiles_cover_an_axis_on_the_grid_of_cells(grid: tuple[int, int, int, int]) -> None:
    size, tile, overlap, stride = grid
    spans = tile_spans(*grid)
    assert (spans[0][0], spans[-1][1]) == (0, size)
    for start, end in spans:
        assert start % stride == 0
        assert (end - start) % stride == size % stride
        assert 0 < end - start <= tile
    for (_, end), (start, _) in pairwise(spans):
        assert overlap <= end - start < overlap + stride
    for (_, end), (start, _) in zip(spans, spans[2:], strict=False):
        assert end <= start
    assert len({end - start for start, end in spans[:-1]}) <= 1


def fewest(size: int, tile: int, overlap: int, stride: int) -> int:
    """How many tiles there must be: each lies as far on as it may."""
    count, start = 1, 0
    while size - start > tile:
        end = max(end for end in range(start + 1, start + tile + 1) if (end - size) % stride == 0)
        start = max(at for at in range(0, end + 1, stride) if end - at >= overlap)
        count += 1
    return count


@settings(deadline=None)
@given(grids)
def test_there_are_as_few_tiles_as_can_be(grid: tuple[int, int, int, int]) -> None:
    assert len(tile_spans(*grid)) == fewest(*grid)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_tiles_start_at_multiples_of_the_output_stride(stride: int) -> None:
    assert tile_stride(segmenter(output_stride=stride)) == stride


def test_spans_of_a_few_sizes() -> None:
    assert tile_spans(512, 512, 64, 32) == [(0, 512)]
    assert tile_spans(1000, 512, 64, 8) == [(0, 376), (312, 688), (624, 1000)]
    assert tile_spans(12_000, 2048, 64, 16)[:2] == [(0, 1776), (1712, 3488)]


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (500, 64, "tile: expected a multiple of 32, the model's stride; got 500, take 512"),
        (0, 0, "tile: expected at least 64 pixels, twice the overlap of 0 and a stride of 32; got 0"),
        (-1, 0, "tile: expected a multiple of 32, the model's stride; got -1, take 32"),
        (512, 65, "overlap: expected a multiple of 32, the model's stride; got 65, take 96"),
        (512, -32, "overlap: expected a multiple of 32, the model's stride; got -32, take 0"),
        (160, 64, "tile: expected at least 192 pixels, twice the overlap of 64 and a stride of 32; got 160"),
    ],
)
def test_tiles_that_cannot_be_are_refused(tile: int, overlap: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tile_spans(1000, tile, overlap, 32)


def answers(down: list[Span], across: list[Span], classes: int = 2) -> dict[tuple[Span, Span], Tensor]:
    return {
        (rows, columns): torch.rand(classes, rows[1] - rows[0], columns[1] - columns[0])
        for rows in down
        for columns in across
    }


def look_up(found: dict[tuple[Span, Span], Tensor]) -> Look:
    return lambda rows, columns: found[rows, columns].clone()


def weights(spans: list[Span], chosen: Span) -> Tensor:
    """Of one tile at each pixel of an axis: tents that fall over what it shares with others, told pixel by pixel."""
    values = torch.zeros(spans[-1][1])
    for pixel in range(*chosen):
        values[pixel] = 1
        for start, end in spans:
            if start < chosen[0] <= pixel < end:
                values[pixel] = (pixel - chosen[0] + 0.5) / (end - chosen[0])
            if chosen[0] < start <= pixel:
                values[pixel] = 1 - (pixel - start + 0.5) / (chosen[1] - start)
    return values


def blend_slowly(down: list[Span], across: list[Span], found: dict[tuple[Span, Span], Tensor]) -> Tensor:
    """The sum of all tiles' answers, each times its weight, in a map of the whole image."""
    total = torch.zeros(len(found[down[0], across[0]]), down[-1][1], across[-1][1])
    for (rows, columns), values in found.items():
        weight = weights(down, rows)[slice(*rows), None] * weights(across, columns)[slice(*columns)]
        total[:, slice(*rows), slice(*columns)] += weight * values
    return total


def collect(down: list[Span], across: list[Span], look: Look, first: int = 0) -> Tensor:
    total = torch.full((2, down[-1][1], across[-1][1]), torch.nan)
    for block in blend_tiles(down, across, look, first):
        place = total[:, slice(*block.rows), slice(*block.columns)]
        assert place.isnan().all(), "a pixel was given twice"
        place[:] = block.probabilities
    return total


small_grids = st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 4), st.integers(0, 2), st.integers(0, 3))


@settings(max_examples=100, deadline=None)
@given(small_grids)
def test_weights_of_tiles_add_up_to_1_everywhere(grid: tuple[int, int, int, int, int]) -> None:
    height, width, stride, overlap, more = grid
    tile = (2 * overlap + 2 + more) * stride
    down, across = (tile_spans(size, tile, overlap * stride, stride) for size in (height, width))
    whole = collect(down, across, lambda rows, columns: torch.ones(2, rows[1] - rows[0], columns[1] - columns[0]))
    torch.testing.assert_close(whole, torch.ones_like(whole))


@settings(max_examples=100, deadline=None)
@given(small_grids)
def test_blended_strips_are_the_sum_of_all_tiles_by_weight(grid: tuple[int, int, int, int, int]) -> None:
    height, width, stride, overlap, more = grid
    tile = (2 * overlap + 2 + more) * stride
    down, across = (tile_spans(size, tile, overlap * stride, stride) for size in (height, width))
    found = answers(down, across)
    torch.testing.assert_close(collect(down, across, look_up(found)), blend_slowly(down, across, found))


def test_a_start_at_a_later_row_gives_the_rows_after_it_bit_for_bit() -> None:
    down, across = tile_spans(90, 24, 8, 4), tile_spans(50, 24, 8, 4)
    look = look_up(answers(down, across))
    whole, later = collect(down, across, look), collect(down, across, look, 2)
    done = down[3][0]
    assert later[:, done:].equal(whole[:, done:])
    assert not later[:, down[2][0] : done].equal(whole[:, down[2][0] : done])


@pytest.mark.parametrize("options", [{}, {"head": "pspnet"}, {"head": "deeplabv3", "output_stride": 8}])
def test_an_image_within_one_tile_is_looked_at_whole_bit_for_bit(options: dict[str, Any]) -> None:
    model, image = segmenter(**options), photograph(150, 180)
    expected = pixel_probabilities(model, image).argmax(0)
    assert len(expected.unique()) > 1
    assert segment_tiled(model, image, tile=192).equal(expected)


@pytest.mark.parametrize("size", [(224, 256), (203, 250), (193, 241)])
@pytest.mark.parametrize("backbone", ["resnet10t", "tf_efficientnet_lite0"])
def test_tiles_are_the_whole_image_away_from_their_borders(backbone: str, size: tuple[int, int]) -> None:
    # These maps see 16 pixels far; the second network pads by TensorFlow's SAME rule, which goes by the image's size.
    config = SegmenterConfig(("a", "b"), backbone, "deeplabv3", output_stride=4, rates=(1,), image_level=False, width=8)
    torch.manual_seed(0)
    model = Segmenter(config, create_backbone(backbone, 1, "none")).eval()
    image = photograph(*size)
    down, across = (tile_spans(side, 160, 48, tile_stride(model)) for side in size)
    far = torch.ones(size, dtype=torch.bool)
    for spans, axis in ((down, far), (across, far.T)):
        for border in (spans[1][0], spans[0][1]):
            axis[border - 16 : border + 16] = False
    with torch.inference_mode():
        tiled = collect(down, across, tiles._look(model, image, None))
    assert len(down) == len(across) == 2
    assert far.float().mean() > 0.4
    torch.testing.assert_close(tiled[:, far], pixel_probabilities(model, image)[:, far], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_global_context_is_that_of_the_whole_image_in_every_tile(model: Segmenter) -> None:
    image = photograph(160, 300)
    context = image_context(model, image)
    assert context.equal(model.context_of(model.pixels(image)))
    tile = Image.Image.crop(image, (0, 0, 128, 160))
    seen = tiles._look(model, image, context)((0, 160), (0, 128))
    assert seen.equal(model(model.pixels(tile), context)[0].softmax(0))
    assert not seen.allclose(model(model.pixels(tile))[0].softmax(0), atol=1e-3)
    options: dict[str, Any] = {"tile": 192, "overlap": 32}
    alone, together = (segment_tiled(model, image, **options, global_context=given) for given in (False, True))
    assert not alone.equal(together)


def test_a_large_image_gives_its_context_from_a_copy_of_1024_pixels(model: Segmenter) -> None:
    image = photograph(60, 2048)
    reduced = image.resize((1024, 30), Image.Resampling.BILINEAR, reducing_gap=2)
    assert image_context(model, image).equal(model.context_of(model.pixels(reduced)))


def test_a_model_without_an_image_level_branch_has_no_global_context(tmp_path: Path) -> None:
    model = segmenter(head="pspnet")
    with pytest.raises(ValueError, match="a global context needs ASPP with an image-level branch"):
        segment_tiled(model, photograph(40, 40), tile=128, overlap=0, global_context=True)


def test_files_hold_what_tiles_in_memory_give(model: Segmenter, tmp_path: Path) -> None:
    image = photograph(250, 300)
    expected = segment_tiled(model, image, tile=128, overlap=32)
    done = segment_to_file(
        model, image, tmp_path / "new" / "a.npy", tile=128, overlap=32, probabilities=tmp_path / "p.npy"
    )
    assert done == (tmp_path / "new" / "a.npy", 128, 3 * 4, 0)
    labels, probabilities = np.load(done.labels), np.load(tmp_path / "p.npy")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected)
    assert (probabilities.dtype, probabilities.shape) == (np.float16, (3, 250, 300))
    np.testing.assert_allclose(probabilities.sum(0, dtype=np.float32), 1, atol=2e-3)
    assert (probabilities.argmax(0) == labels).mean() > 0.99
    assert sorted(file.name for file in tmp_path.rglob("*.npy*")) == ["a.npy", "a.npy.json", "p.npy"]


def test_labels_of_more_than_255_classes_take_16_bits(tmp_path: Path) -> None:
    model, image = segmenter(classes=tuple(map(str, range(300)))), photograph(200, 100)
    with torch.no_grad():
        model.head.classify[-1].bias[255:] += 100  # type: ignore[index]
    labels = np.load(segment_to_file(model, image, tmp_path / "a.npy", tile=192).labels)
    assert labels.dtype == np.uint16
    assert labels.max() > 255
    np.testing.assert_array_equal(labels, segment_tiled(model, image, tile=192))


KILLED = """
import os, signal, sys
from itertools import pairwise
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from sppnet.segment import tiles
from tests.segment import test_tiles
torch.set_num_threads(1)
write, left = tiles._write, int(sys.argv[3])
def write_or_die(*arguments):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    write(*arguments)
tiles._write = write_or_die
folder = Path(sys.argv[2])
tiles.segment_to_file(
    test_tiles.segmenter(), test_tiles.photograph(500, 300), folder / "a.npy", tile=128, overlap=32,
    probabilities=folder / "p.npy",
)
"""


def test_after_a_kill_the_same_call_goes_on_with_the_same_labels(model: Segmenter, tmp_path: Path) -> None:
    image = photograph(500, 300)  # 6 x 4 tiles
    options: dict[str, Any] = {"tile": 128, "overlap": 32}
    fresh = segment_to_file(model, image, tmp_path / "fresh.npy", **options, probabilities=tmp_path / "q.npy")
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[2]), str(tmp_path), "14"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "a.npy.json").read_text())["rows_done"] == 3
    assert not (tmp_path / "a.npy").exists()
    looked = []
    look = tiles._look(model, image, None)

    def watch(*_: object) -> Look:
        def watched(rows: Span, columns: Span) -> Tensor:
            looked.append(rows)
            return look(rows, columns)

        return watched

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_look", watch)
        done = segment_to_file(model, image, tmp_path / "a.npy", **options, probabilities=tmp_path / "p.npy")
    assert done.resumed == 3
    assert len(looked) == (1 + 3) * 4  # the third row once more, and those that were left
    for one, other in (("a", "fresh"), ("p", "q")):
        np.testing.assert_array_equal(np.load(tmp_path / f"{one}.npy"), np.load(tmp_path / f"{other}.npy"))
    assert fresh.tiles == done.tiles == 24


def test_a_call_that_stops_at_any_tile_goes_on_at_its_row(model: Segmenter, tmp_path: Path) -> None:
    image = photograph(220, 160)  # 3 x 2 tiles
    options: dict[str, Any] = {"tile": 128, "overlap": 32}
    expected = segment_tiled(model, image, **options)
    for fatal in range(1, 7):
        passes: list[int] = []

        def stop(*_: object, fatal: int = fatal, passes: list[int] = passes) -> None:
            passes.append(1)
            if len(passes) == fatal:
                raise KeyboardInterrupt

        path, done = tmp_path / f"{fatal}.npy", (fatal - 1) // 2
        hook = model.register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            segment_to_file(model, image, path, **options)
        assert not path.exists()
        passes.append(10)  # and no stop from now on
        before = len(passes)
        assert segment_to_file(model, image, path, **options) == (path, 128, 6, done)
        assert len(passes) - before == 6 - 2 * max(done - 1, 0)
        hook.remove()
        np.testing.assert_array_equal(np.load(path), expected)


def test_a_kill_between_the_two_files_at_the_end_loses_neither(
    model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, kept = photograph(200, 100), tmp_path / "p.npy"
    segment_to_file(model, image, tmp_path / "a.npy", tile=192, probabilities=kept)
    before = kept.read_bytes()
    kept.rename(tmp_path / "p.npy.part")
    monkeypatch.setattr(tiles, "blend_tiles", None)
    assert segment_to_file(model, image, tmp_path / "a.npy", tile=192, probabilities=kept).resumed == 2
    assert kept.read_bytes() == before


def test_a_second_call_returns_at_once(model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph(200, 100)
    segment_to_file(model, image, tmp_path / "a.npy", memory="4GB")
    monkeypatch.setattr(tiles, "blend_tiles", None)
    assert segment_to_file(model, image, tmp_path / "a.npy", memory="4GB").resumed == 1
    (tmp_path / "a.npy").unlink()
    with pytest.raises(TypeError, match="not callable"):
        segment_to_file(model, image, tmp_path / "a.npy", memory="4GB")


@pytest.mark.parametrize("changed", ["image", "weights", "config", "tile", "overlap", "context", "probabilities"])
def test_another_image_model_or_option_starts_anew(changed: str, model: Segmenter, tmp_path: Path) -> None:
    image, path = photograph(200, 100), tmp_path / "a.npy"
    segment_to_file(model, image, path, tile=192, overlap=32)
    assert segment_to_file(model, image, path, tile=192, overlap=32).resumed == 2
    if changed == "image":
        image.putpixel((99, 199), (1, 2, 3))
    if changed == "weights":
        model = segmenter(1)
    if changed == "config":
        model = segmenter(upsample="resize")
    changes: dict[str, dict[str, Any]] = {
        "tile": {"tile": 224},
        "overlap": {"overlap": 0},
        "context": {"global_context": True},
    }
    other = {"tile": 192, "overlap": 32, **changes.get(changed, {})}
    probabilities = tmp_path / "p.npy" if changed == "probabilities" else None
    assert segment_to_file(model, image, path, probabilities=probabilities, **other).resumed == 0
    np.testing.assert_array_equal(np.load(path), segment_tiled(model, image, **other))


def test_progress_that_cannot_be_read_starts_anew(model: Segmenter, tmp_path: Path) -> None:
    image, path = photograph(40, 40), tmp_path / "a.npy"
    segment_to_file(model, image, path, tile=192)
    for text in ("", "[]", '{"rows_done": 1}', "null"):
        (tmp_path / "a.npy.json").write_text(text)
        assert segment_to_file(model, image, path, tile=192).resumed == 0


def test_either_a_memory_or_a_tile_is_given(model: Segmenter, tmp_path: Path) -> None:
    for options in ({}, {"memory": "1GB", "tile": 128}):
        with pytest.raises(ValueError, match="memory: expected either a memory or a tile; got memory="):
            segment_to_file(model, photograph(8, 8), tmp_path / "a.npy", **options)  # type: ignore[arg-type]
