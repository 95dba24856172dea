"""What the operators are timed against: the ways from a map to its vectors that torch and torchvision offer."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from sppnet.ops.bins import Level, parse_levels
from sppnet.ops.pyramid import pyramid_pool
from sppnet.ops.reference import Grids, Reduce
from sppnet.ops.regions import box_windows, region_pyramid_pool

Dtype = Literal["float32", "bfloat16", "float16"]
Layout = Literal["nchw", "channels_last"]
Role = Literal["ours", "control", "peer", "limit", "orientation"]
Form = Callable[[Tensor], Tensor]

_STRIDE = 16  # pixels from one cell to the next, for boxes
_EXACT_SIDES = (1, 2, 3, 4, 6)  # of levels whose bins torchvision's roi_pool cuts exactly at every window
_CROPS = 250  # windows that the loop over crops differentiates; each costs it a gradient of the whole map


@dataclass(frozen=True)
class Case:
    """What is pooled: whole maps, or with `boxes` above 0 that many regions of them, over all images."""

    shape: tuple[int, int, int, int]
    levels: tuple[Level, ...]
    dtype: Dtype = "float32"
    layout: Layout = "nchw"
    backward: bool = False
    boxes: int = 0
    reduce: Reduce = "max"
    device: str = "cpu"


@dataclass(frozen=True)
class Candidate:
    """One way from a map to its vectors.

    All but ``orientation`` must give what the first candidate gives. `share` is the part of the vectors that one
    call makes, the first of them; its time is scaled up to all.
    """

    name: str
    form: Form
    role: Role = "peer"
    share: float = 1.0
    note: str = ""


def pyramid_candidates(case: Case) -> list[Candidate]:
    """Ours and its peers for whole maps."""
    grids, reduce = parse_levels(case.levels), case.reduce
    candidates = [
        Candidate("sppnet", lambda x: pyramid_pool(x, case.levels, reduce=reduce), "ours"),
        Candidate("adaptive", lambda x: _adaptive(x, grids, reduce, _separate)),
    ]
    if reduce == "max":
        candidates.append(Candidate("coarse from fine", lambda x: _adaptive(x, grids, reduce, _nested)))
    if case.layout == "nchw":
        candidates.append(
            Candidate("through channels_last", lambda x: _adaptive(_channels_last(x), grids, reduce, _nested))
        )
    return candidates


def compiled_candidate(case: Case, x: Float[Tensor, "n c h w"], grad: Float[Tensor, "n d"] | None) -> Candidate:
    """torch.compile of the plain form, compiled here; the seconds that it took are in the note."""
    grids = parse_levels(case.levels)
    torch.compiler.reset()
    form = torch.compile(lambda x: _adaptive(x, grids, case.reduce, _separate), dynamic=False)
    begin = time.perf_counter()
    call(form, x, grad)()
    return Candidate("compiled", form, note=f"adaptive by torch.compile, {time.perf_counter() - begin:.1f} s once")


def region_candidates(case: Case, boxes: list[Tensor]) -> list[Candidate]:
    """Ours and its peers for regions under the rule ``roi_pool``, which is torchvision's."""
    from sppnet.ops.cpu import (
        dispatch as cpu,  # imported where it is needed, as everywhere: its compiler takes long
    )

    grids, reduce = parse_levels(case.levels), case.reduce

    def ours(x: Tensor) -> Tensor:
        return region_pyramid_pool(x, boxes, case.levels, 1 / _STRIDE, "roi_pool", reduce=reduce)

    candidates = [Candidate("sppnet", ours, "ours")]
    if case.device == "cpu" and not case.backward and cpu.serves(torch.empty(1, dtype=getattr(torch, case.dtype))):

        def unmerged(x: Tensor) -> Tensor:
            return cpu.forward(x, box_cells(boxes, case), grids, "adaptive", reduce, False, merge=False)[0]

        candidates.append(Candidate("sppnet, not merged", unmerged, "ours", note="equal windows pooled each"))
    if reduce == "max":
        exact = all(side in _EXACT_SIDES for grid in grids for side in grid)
        role: Role = "peer" if exact else "orientation"
        note = "" if exact else "cuts bins in float32, which is not exact at these levels: for orientation"
        candidates += [
            Candidate("roi_pool", lambda x: _regions(x, boxes, grids, roi_pool, _separate), role, note=note),
            Candidate(
                "roi_pool, coarse from fine",
                lambda x: _regions(x, boxes, grids, roi_pool, _nested),
                role,
                note=note,
            ),
        ]
    count = min(_CROPS, case.boxes) if case.backward else case.boxes

    def crops(x: Tensor) -> Tensor:
        maps, windows = _channels_last(x), box_cells(boxes, case)[:count].tolist()
        parts = [maps[i : i + 1, :, top:bottom, left:right] for i, left, top, right, bottom in windows]
        return torch.cat([_adaptive(part, grids, reduce, _nested) for part in parts])

    note = "" if count == case.boxes else f"{count} of {case.boxes} windows timed, and scaled"
    note_align = "2 x 2 samples a bin, averaged: another quantity, for orientation"
    return [
        *candidates,
        Candidate("crops of channels_last", crops, share=count / case.boxes, note=note),
        Candidate("roi_align", lambda x: _regions(x, boxes, grids, _align, _separate), "orientation", note=note_align),
    ]


def limit(case: Case, x: Float[Tensor, "n c h w"], out: Float[Tensor, "k d"]) -> Callable[[], object]:
    """What torch takes to read once what is read and to write once what is written.

    For regions it writes to fresh memory, as a result of that length always is; for whole maps to memory in use.
    """
    x, gradient = x.detach(), torch.empty_like(x)
    fresh = torch.empty_like if case.boxes else lambda tensor: tensor

    def run() -> None:
        x.sum()
        fresh(out).fill_(1)
        if case.backward:
            out.sum()
            fresh(gradient).fill_(1)

    return run


def call(form: Form, x: Float[Tensor, "n c h w"], grad: Float[Tensor, "k d"] | None) -> Callable[[], object]:
    """What is timed: the form, or the form and the gradient of the map."""
    if grad is None:
        return lambda: form(x)
    return lambda: torch.autograd.grad(form(x), x, grad)


def proposals(count: int, height: int, width: int, seed: int = 0) -> Float[Tensor, "k 4"]:
    """Boxes with the look of a proposal method's, the same for the same arguments.

    A quarter as many boxes are drawn first: area log-uniform between 32 x 32 pixels and 0.9 of the image, width to
    height log-uniform between 1/3 and 3, place uniform. Each proposal is one of them, drawn at random, every edge
    moved by a normal error of 3 % of the side. None ends after the last cell of a map of stride 16, which under the
    rule ``roi_pool`` is half a stride before the image's edge.

    Args:
        count: number of boxes.
        height: of the image, in pixels.
        width: of the image, in pixels.
        seed: of all that is drawn.

    Returns:
        (count, 4) float32 xyxy in pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = max(count // 4, 1)
    image = torch.tensor([float(width), float(height)])
    low, high = 32.0**2, max(0.9 * height * width, 32.0**2)
    area = low * (high / low) ** torch.rand(drawn, generator=generator)
    aspect = 3 ** (2 * torch.rand(drawn, generator=generator) - 1)
    sides = torch.stack(((area * aspect).sqrt(), (area / aspect).sqrt()), dim=1).minimum(image)
    corner = torch.rand(drawn, 2, generator=generator) * (image - sides)
    chosen = torch.randint(drawn, (count,), generator=generator)
    boxes = torch.cat((corner, corner + sides), dim=1)[chosen]
    boxes += 0.03 * sides[chosen].repeat(1, 2) * torch.randn(count, 4, generator=generator)
    boxes = boxes.clamp(min=0).minimum(image.repeat(2) - 0.51 * _STRIDE)
    return torch.cat((boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, 2:]), dim=1)


def draw_boxes(case: Case) -> list[Tensor]:
    """Proposals of each image of the case, which has stride 16."""
    images, _, height, width = case.shape
    counts = [case.boxes // images + (index < case.boxes % images) for index in range(images)]
    drawn = [proposals(count, height * _STRIDE, width * _STRIDE, seed) for seed, count in enumerate(counts)]
    return [boxes.to(case.device) for boxes in drawn]


def box_cells(boxes: list[Tensor], case: Case) -> Int[Tensor, "k 5"]:
    """Boxes as windows of cells: image, then xyxy cells, half-open."""
    counts = torch.tensor([len(part) for part in boxes], device=case.device)
    images = torch.arange(len(boxes), device=case.device).repeat_interleave(counts)
    scale, offset = (1 / _STRIDE, 1 / _STRIDE), (0.0, 0.0)
    return box_windows(torch.cat(boxes), images, case.shape[2:], scale, offset, "roi_pool")


Pool = Callable[[tuple[int, int]], Tensor]


def _separate(pool: Pool, grids: Grids) -> Tensor:
    """Each level from the map."""
    return torch.cat([pool(grid).flatten(1) for grid in grids], dim=1)


def _nested(pool: Pool, grids: Grids) -> Tensor:
    """Maxima of a level from those of the smallest level that it divides; from the map where there is none."""
    done: dict[tuple[int, int], Tensor] = {}
    for rows, columns in sorted(set(grids), key=math.prod, reverse=True):
        finer = [grid for grid in done if grid[0] % rows == 0 and grid[1] % columns == 0]
        if finer:
            source = min(finer, key=math.prod)
            done[rows, columns] = F.max_pool2d(done[source], (source[0] // rows, source[1] // columns))
        else:
            done[rows, columns] = pool((rows, columns))
    return _separate(done.__getitem__, grids)


def _adaptive(x: Tensor, grids: Grids, reduce: Reduce, combine: Callable[[Pool, Grids], Tensor]) -> Tensor:
    if reduce == "avg":  # means of overlapping bins do not follow from finer ones
        return _separate(lambda grid: F.adaptive_avg_pool2d(x, grid), grids)
    return combine(lambda grid: F.adaptive_max_pool2d(x, grid), grids)


def _regions(
    x: Tensor, boxes: list[Tensor], grids: Grids, op: Callable[..., Tensor], combine: Callable[[Pool, Grids], Tensor]
) -> Tensor:
    wide = x.float() if x.element_size() < 4 else x  # torchvision wants boxes in the dtype of the map
    return combine(lambda grid: op(wide, boxes, grid, 1 / _STRIDE), grids).to(x.dtype)


def _align(x: Tensor, boxes: list[Tensor], grid: tuple[int, int], scale: float) -> Tensor:
    found: Tensor = roi_align(x, boxes, grid, scale, sampling_ratio=2)
    return found


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
