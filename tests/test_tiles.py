"""Tiles: where they lie, how they are blended, and that a killed call goes on."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from sppnet.geometry import Axis, Step
from sppnet.segment import Segmenter, SegmenterConfig, create_segmenter
from sppnet.segment_views import pixel_probabilities
from sppnet.tiles import (
    Block,
    Span,
    Tiled,
    blend_tiles,
    image_context,
    segment_tiled,
    segment_to_file,
    tile_spans,
    tile_stride,
)

TINY = SegmenterConfig(("a", "b", "c"), "test_efficientnet", width=16)
SIZE = (150, 200)
TILE, OVERLAP = 96, 16  # SIZE has 2 rows of 3 tiles


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Blots of colour with grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-20, 21, (height, width, 3))).clip(0, 255).astype(np.uint8))


def build(config: SegmenterConfig = TINY) -> Segmenter:
    """A segmenter whose classes all come up; untrained heads give one class everywhere."""
    torch.manual_seed(0)
    model = create_segmenter(config, "none").eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)  # some networks begin with zeros, which cut their branches off
    last = model.head.classify[-1]  # type: ignore[index]
    nn.init.zeros_(last.bias)
    with torch.no_grad():
        logits = model(model.pixels(photograph(128, 128, 1)))
        scale = 2 / logits.std((0, 2, 3))
        last.weight *= scale.view(-1, 1, 1, 1)
        last.bias -= scale * logits.mean((0, 2, 3))
    return model


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return build()


@pytest.fixture
def image() -> Image.Image:
    return photograph(*SIZE)


@pytest.fixture
def passes(model: Segmenter) -> Iterator[list[int]]:
    """An element for each pass of the model."""
    seen: list[int] = []
    hook = model.register_forward_hook(lambda *_: seen.append(1))
    yield seen
    hook.remove()


# Where tiles lie


@st.composite
def axes(draw: st.DrawFn, count: int = 1) -> tuple[list[int], int, int, int]:
    """Sizes, tile, overlap and stride."""
    stride = draw(st.sampled_from([1, 2, 3, 8, 16]))
    common = draw(st.integers(0, 4))
    tile = 2 * (common + 1) + draw(st.integers(0, 6))
    sizes = [draw(st.integers(1, 12 * tile * stride)) for _ in range(count)]
    return sizes, tile * stride, common * stride, stride


def fewest(size: int, tile: int, overlap: int, stride: int) -> int:
    """How many tiles there must be: each begins as far on as it may."""
    count, start = 1, 0
    while size - start > tile:
        end = max(end for end in range(start + 1, start + tile + 1) if (end - size) % stride == 0)
        start = max(at for at in range(start, end, stride) if end - at >= overlap)
        count += 1
    return count


@given(axes())
def test_tiles_cover_an_axis_on_the_grid(axis: tuple[list[int], int, int, int]) -> None:
    (size,), tile, overlap, stride = axis
    spans = tile_spans(size, tile, overlap, stride)
    assert (spans[0][0], spans[-1][1]) == (0, size)
    assert all(start % stride == 0 for start, _ in spans)
    assert all((end - start - size) % stride == 0 for start, end in spans)
    assert all(0 < end - start <= tile for start, end in spans)
    common = {before[1] - after[0] for before, after in pairwise(spans)}
    assert len(common) <= 1
    assert all(overlap <= value < overlap + stride for value in common)
    assert all(third[0] >= first[1] for first, third in zip(spans, spans[2:], strict=False))


@given(axes())
def test_there_are_as_few_tiles_as_can_be(axis: tuple[list[int], int, int, int]) -> None:
    (size,), *rest = axis
    assert len(tile_spans(size, *rest)) == fewest(size, *rest)


def test_tiles_are_about_equally_long() -> None:
    assert tile_spans(96, 96, 16, 16) == [(0, 96)]
    assert tile_spans(97, 96, 16, 16) == [(0, 65), (48, 97)]
    assert tile_spans(300, 128, 32, 16) == [(0, 108), (64, 172), (128, 236), (192, 300)]
    assert tile_spans(10, 4, 1, 1) == [(0, 4), (3, 7), (6, 10)]


def test_cells_of_tiles_are_those_of_the_whole_image_whatever_the_padding() -> None:
    """TensorFlow's SAME pads by the size; a tile with the image's remainder is padded as the image is."""
    axis = Axis((Step(3, 2, same=True), Step(5, 2, same=True), Step(3, 2, same=True), Step(3, 2, same=True)))
    for size in range(300, 332):
        centre = axis.first_centre(size)
        for start, end in tile_spans(size, 160, 32, 16):
            assert axis.first_centre(end - start) == centre
            assert start % axis.stride == 0


@pytest.mark.parametrize(("output_stride", "stride"), [(8, 8), (16, 16), (32, 32)])
def test_tiles_start_at_multiples_of_the_output_stride(output_stride: int, stride: int) -> None:
    assert tile_stride(create_segmenter(replace(TINY, output_stride=output_stride), "none")) == stride


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (100, 16, "tile: expected a multiple of 16, the model's stride; got 100, take 112"),
        (0, 16, "tile: expected at least 64 pixels, .*; got 0"),
        (-16, 16, "tile: expected a multiple of 16, the model's stride; got -16, take 16"),
        (96, 10, "overlap: expected a multiple of 16, the model's stride; got 10, take 16"),
        (96, -16, "overlap: expected a multiple of 16, the model's stride; got -16, take 0"),
        (96, 48, "tile: expected at least 128 pixels, twice the overlap of 48 and a stride of 16; got 96"),
    ],
)
def test_wrong_tiles_are_refused(tile: int, overlap: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tile_spans(500, tile, overlap, 16)


# How they are blended


def answers(rows: Span, columns: Span) -> Tensor:
    """What a network might say of a tile: something else for each."""
    generator = torch.Generator().manual_seed(1000 * rows[0] + columns[0])
    return torch.rand(2, rows[1] - rows[0], columns[1] - columns[0], generator=generator)


def gather(blocks: Iterator[Block], height: int, width: int) -> Tensor:
    """The image's probabilities from blocks; each pixel must come once."""
    whole, seen = torch.zeros(2, height, width), torch.zeros(height, width)
    for block in blocks:
        rows, columns = slice(*block.rows), slice(*block.columns)
        whole[:, rows, columns] = block.probabilities
        seen[rows, columns] += 1
    assert (seen == 1).all()
    return whole


def slow_blend(down: list[Span], across: list[Span], look: Callable[[Span, Span], Tensor]) -> Tensor:
    """All tiles times their weights, added up in the image's size."""

    def weights(spans: list[Span], index: int) -> Tensor:
        start, end = spans[index]
        found = torch.ones(end - start)
        if index > 0:
            strip = spans[index - 1][1] - start
            found[:strip] = (torch.arange(strip) + 0.5) / strip
        if index + 1 < len(spans):
            strip = end - spans[index + 1][0]
            found[len(found) - strip :] = 1 - (torch.arange(strip) + 0.5) / strip
        return found

    total = torch.zeros(2, down[-1][1], across[-1][1])
    for row, rows in enumerate(down):
        for column, columns in enumerate(across):
            weight = weights(down, row)[:, None] * weights(across, column)
            total[:, slice(*rows), slice(*columns)] += weight * look(rows, columns)
    return total


def grid(both: tuple[list[int], int, int, int]) -> tuple[list[Span], list[Span]]:
    (height, width), *rest = both
    return tile_spans(min(height, 400), *rest), tile_spans(min(width, 400), *rest)


@given(axes(2))
@settings(max_examples=40, deadline=None)
def test_every_pixel_comes_once_with_weights_that_sum_to_1(both: tuple[list[int], int, int, int]) -> None:
    down, across = grid(both)
    blocks = blend_tiles(down, across, lambda rows, columns: torch.ones_like(answers(rows, columns)))
    whole = gather(blocks, down[-1][1], across[-1][1])
    torch.testing.assert_close(whole, torch.ones_like(whole))


@given(axes(2))
@settings(max_examples=40, deadline=None)
def test_strips_alone_give_what_the_sum_of_all_weighted_tiles_gives(both: tuple[list[int], int, int, int]) -> None:
    down, across = grid(both)
    whole = gather(blend_tiles(down, across, answers), down[-1][1], across[-1][1])
    torch.testing.assert_close(whole, slow_blend(down, across, answers))


@given(axes(2), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_rows_after_the_one_started_at_are_the_same_to_the_last_bit(
    both: tuple[list[int], int, int, int], first: int
) -> None:
    down, across = grid(both)
    whole = [block for block in blend_tiles(down, across, answers) if block.row > first]
    later = [block for block in blend_tiles(down, across, answers, first) if block.row > first]
    assert [block[:3] for block in whole] == [block[:3] for block in later]
    assert all(torch.equal(one.probabilities, other.probabilities) for one, other in zip(whole, later, strict=True))


# What the network says of them


@pytest.mark.parametrize("size", [SIZE, (1, 1), (17, 3)])
def test_one_tile_is_the_whole_image_to_the_last_bit(model: Segmenter, tmp_path: Path, size: tuple[int, int]) -> None:
    image = photograph(*size)
    whole = pixel_probabilities(model, image)
    assert torch.equal(segment_tiled(model, image, tile=208, overlap=16), whole.argmax(0))
    file, kept = tmp_path / "labels.npy", tmp_path / "probabilities.npy"
    tiled = segment_to_file(model, image, file, tile=208, overlap=16, probabilities=kept)
    assert tiled == Tiled(file, 208, 1, 0)
    assert np.array_equal(np.load(file), whole.argmax(0).numpy())
    assert np.array_equal(np.load(kept), whole.numpy().astype(np.float16))


def test_tiles_are_the_whole_image_as_far_as_the_network_sees_inside_them(tmp_path: Path) -> None:
    """This network sees less than 112 pixels far, so the middle of a tile of 288 does not know of its borders."""
    model, image = build(replace(TINY, backbone="test_resnet", context="none")), photograph(288, 500)
    file = tmp_path / "probabilities.npy"
    segment_to_file(model, image, tmp_path / "labels.npy", tile=288, overlap=16, probabilities=file)
    assert tile_spans(500, 288, 16, 16) == [(0, 260), (240, 500)]
    whole, tiled = pixel_probabilities(model, image), torch.from_numpy(np.load(file)).float()
    alike = (tiled - whole).abs().amax((0, 1))
    assert alike[: 260 - 112].max() < 1e-3
    assert alike[240 + 112 :].max() < 1e-3
    assert alike.max() > 0.01
    labels = whole.argmax(0)
    assert (tiled.argmax(0) == labels).float().mean() > 0.98
    assert labels.unique().tolist() == [0, 1, 2]


def test_labels_are_the_greatest_of_the_blended_probabilities(
    model: Segmenter, image: Image.Image, tmp_path: Path
) -> None:
    labels = segment_tiled(model, image, tile=TILE, overlap=OVERLAP)
    file, kept = tmp_path / "labels.npy", tmp_path / "folder.npy"
    assert segment_to_file(model, image, file, tile=TILE, overlap=OVERLAP, probabilities=kept) == Tiled(file, 96, 6, 0)
    assert np.array_equal(np.load(file), labels.numpy())
    probabilities = np.load(kept)
    assert (probabilities.dtype, probabilities.shape) == (np.float16, (3, *SIZE))
    np.testing.assert_allclose(probabilities.astype(float).sum(0), 1, atol=2e-3)
    assert (probabilities.argmax(0) == labels.numpy()).mean() > 0.99  # halves have ties
    assert labels.unique().tolist() == [0, 1, 2]


def test_every_tile_sees_the_global_context(model: Segmenter, image: Image.Image) -> None:
    down, across = tile_spans(150, TILE, OVERLAP, 16), tile_spans(200, TILE, OVERLAP, 16)
    x = model.pixels(image)

    def look(rows: Span, columns: Span) -> Tensor:
        with torch.no_grad():
            return model(x[:, :, slice(*rows), slice(*columns)], model.context_of(x))[0].softmax(0)

    expected = torch.zeros(SIZE, dtype=torch.long)
    for block in blend_tiles(down, across, look):
        expected[slice(*block.rows), slice(*block.columns)] = block.probabilities.argmax(0)
    found = segment_tiled(model, image, tile=TILE, overlap=OVERLAP, global_context=True)
    assert torch.equal(found, expected)
    assert not torch.equal(found, segment_tiled(model, image, tile=TILE, overlap=OVERLAP))


def test_the_context_of_a_large_image_is_that_of_a_reduced_copy(model: Segmenter) -> None:
    image = photograph(96, 1100)
    reduced = image.resize((1024, 89), Image.Resampling.BILINEAR, reducing_gap=2)
    with torch.no_grad():
        torch.testing.assert_close(image_context(model, image), model.context_of(model.pixels(reduced)))
        small = photograph(60, 1024)
        torch.testing.assert_close(image_context(model, small), model.context_of(model.pixels(small)))


def test_a_global_context_without_an_image_level_branch_is_refused() -> None:
    model = build(replace(TINY, context="none"))
    with pytest.raises(ValueError, match="context: a global context needs ASPP with an image-level branch"):
        segment_tiled(model, photograph(*SIZE), tile=TILE, overlap=OVERLAP, global_context=True)


def test_more_than_255_classes_take_16_bits(tmp_path: Path) -> None:
    model, image = build(SegmenterConfig(tuple(map(str, range(300))), "test_efficientnet", width=16)), photograph(70, 90)
    file = tmp_path / "labels.npy"
    segment_to_file(model, image, file, tile=96, overlap=16)
    labels = np.load(file)
    assert labels.dtype == np.uint16
    assert labels.max() > 255
    assert np.array_equal(labels, pixel_probabilities(model, image).argmax(0).numpy())


# Files, and what happens after a kill


def test_a_finished_call_is_not_repeated(
    model: Segmenter, image: Image.Image, passes: list[int], tmp_path: Path
) -> None:
    file = tmp_path / "deep" / "labels.npy"
    segment_to_file(model, image, file, tile=TILE, overlap=OVERLAP)
    assert len(passes) == 6
    assert sorted(path.name for path in file.parent.iterdir()) == ["labels.npy", "labels.npy.json"]
    assert segment_to_file(model, image, file, tile=TILE, overlap=OVERLAP) == Tiled(file, 96, 6, 2)
    assert len(passes) == 6


def test_a_call_that_fails_at_any_tile_goes_on_at_its_row(model: Segmenter, tmp_path: Path) -> None:
    image = photograph(200, 150)  # 3 rows of 2 tiles
    expected = segment_tiled(model, image, tile=TILE, overlap=OVERLAP).numpy()
    passes: list[int] = []
    for fatal in range(1, 7):
        file, kept = (tmp_path / f"{name}_{fatal}.npy" for name in ("labels", "probabilities"))

        def stop(*_: object, fatal: int = fatal) -> None:
            passes.append(1)
            if len(passes) == fatal:
                raise KeyboardInterrupt

        for done in (None, (fatal - 1) // 2):
            passes.clear()
            hook = model.register_forward_hook(stop if done is None else lambda *_: passes.append(1))
            try:
                tiled = segment_to_file(model, image, file, tile=TILE, overlap=OVERLAP, probabilities=kept)
                assert tiled == Tiled(file, 96, 6, done or 0)
                assert len(passes) == 2 * (3 - max((done or 0) - 1, 0))
            except KeyboardInterrupt:
                assert not file.exists()
            finally:
                hook.remove()
        assert np.array_equal(np.load(file), expected)
        assert np.array_equal(np.load(kept), np.load(tmp_path / "probabilities_1.npy"))


def test_a_killed_process_gives_the_same_labels_when_it_is_started_again(
    model: Segmenter, image: Image.Image, tmp_path: Path
) -> None:
    """The process kills itself at its fifth tile, the second of the second row."""
    script = (
        "import os, signal, sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from test_tiles import OVERLAP, SIZE, TILE, build, photograph; from sppnet.tiles import segment_to_file\n"
        "model, passes = build(), []\n"
        "def count(*_):\n"
        "    passes.append(1)\n"
        "    if len(passes) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "model.register_forward_hook(count)\n"
        "segment_to_file(model, photograph(*SIZE), Path(sys.argv[1]), tile=TILE, overlap=OVERLAP)\n"
    )
    file = tmp_path / "labels.npy"
    process = subprocess.run([sys.executable, "-c", script, str(file)], cwd=Path(__file__).parent, check=False)
    assert process.returncode == -signal.SIGKILL
    assert not file.exists()
    assert json.loads((tmp_path / "labels.npy.json").read_text())["rows_done"] == 1
    assert segment_to_file(model, image, file, tile=TILE, overlap=OVERLAP).resumed == 1
    assert np.array_equal(np.load(file), segment_tiled(model, image, tile=TILE, overlap=OVERLAP).numpy())


def test_a_kill_between_the_two_files_at_the_end_loses_neither(
    model: Segmenter, image: Image.Image, passes: list[int], tmp_path: Path
) -> None:
    file, kept = tmp_path / "labels.npy", tmp_path / "probabilities.npy"
    options: dict[str, Any] = {"tile": TILE, "overlap": OVERLAP, "probabilities": kept}
    segment_to_file(model, image, file, **options)
    before = kept.read_bytes()
    kept.rename(tmp_path / "probabilities.npy.part")
    assert segment_to_file(model, image, file, **options).resumed == 2
    assert kept.read_bytes() == before
    assert len(passes) == 6


@pytest.mark.parametrize("change", ["image", "tile", "overlap", "context", "probabilities", "weights", "damage", "file"])
def test_anything_else_starts_anew(change: str, image: Image.Image, tmp_path: Path) -> None:
    model, file = build(), tmp_path / "labels.npy"
    options: dict[str, Any] = {"tile": TILE, "overlap": OVERLAP}
    segment_to_file(model, image, file, **options)
    if change == "image":
        image.putpixel((199, 149), (1, 2, 3))
    elif change == "weights":
        with torch.no_grad():
            model.head.classify[-1].bias += torch.tensor([9.0, 0, 0])  # type: ignore[index]
    elif change == "damage":
        (tmp_path / "labels.npy.json").write_text('{"rows_done": 2')
    elif change == "file":
        file.unlink()
    else:
        options |= {
            "tile": {"tile": 112},
            "overlap": {"overlap": 32},
            "context": {"global_context": True},
            "probabilities": {"probabilities": tmp_path / "probabilities.npy"},
        }[change]
    assert segment_to_file(model, image, file, **options).resumed == 0
    options.pop("probabilities", None)
    assert np.array_equal(np.load(file), segment_tiled(model, image, **options).numpy())


@pytest.mark.parametrize("options", [{}, {"memory": "3GB", "tile": 96}])
def test_either_a_memory_or_a_tile_is_given(
    model: Segmenter, image: Image.Image, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="memory: expected either a memory or a tile; got memory="):
        segment_to_file(model, image, tmp_path / "labels.npy", **options)
