"""Alternatives to the operators in torch and torchvision, as candidates for the benchmark."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from sppnet.ops.levels import Reduce, parse_levels
from sppnet.ops.pyramid import pyramid_pool
from sppnet.ops.reference import Grids
from sppnet.ops.regions import box_windows, region_pyramid_pool
from sppnet.tools.cases import Case

Role = Literal["ours", "control", "peer", "limit", "orientation"]
Form = Callable[[Tensor], Tensor]

_STRIDE = 16  # pixels per cell, for boxes
_EXACT_SIDES = (1, 2, 3, 4, 6)  # level sides for which torchvision's roi_pool computes exact bin edges
_CROPS = 250  # windows in the backward pass of the loop over crops: each needs a gradient of the whole map


@dataclass(frozen=True)
class Candidate:
    """One way to compute the vectors of a map.

    All candidates except those with the role ``orientation`` must match the first one. If `share` is below 1, a call
    computes only the first part of the vectors, and its time is scaled up.
    """

    name: str
    form: Form
    role: Role = "peer"
    share: float = 1.0
    note: str = ""


def pyramid_candidates(case: Case) -> list[Candidate]:
    """Return the candidates for whole maps, sppnet first."""
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
    """Compile per-level adaptive pooling with torch.compile; the note has the compile time."""
    grids = parse_levels(case.levels)
    torch.compiler.reset()
    form = torch.compile(lambda x: _adaptive(x, grids, case.reduce, _separate), dynamic=False)
    start = time.perf_counter()
    call(form, x, grad)()
    note = f"adaptive with torch.compile, {time.perf_counter() - start:.1f} s to compile"
    return Candidate("compiled", form, note=note)


def region_candidates(case: Case, boxes: list[Tensor]) -> list[Candidate]:
    """Return the candidates for regions under torchvision's rule ``roi_pool``, sppnet first."""
    from sppnet.ops.cpu import dispatch as cpu  # imported late: Numba is slow to import

    grids, reduce = parse_levels(case.levels), case.reduce

    def ours(x: Tensor) -> Tensor:
        return region_pyramid_pool(x, boxes, case.levels, 1 / _STRIDE, "roi_pool", reduce=reduce)

    candidates = [Candidate("sppnet", ours, "ours")]
    if case.device == "cpu" and not case.backward and cpu.serves(torch.empty(1, dtype=getattr(torch, case.dtype))):

        def unmerged(x: Tensor) -> Tensor:
            return cpu.forward(x, box_cells(boxes, case), grids, "adaptive", reduce, False, merge=False)[0]

        candidates.append(Candidate("sppnet, not merged", unmerged, "ours", note="identical windows pooled separately"))
    if reduce == "max":
        exact = all(side in _EXACT_SIDES for grid in grids for side in grid)
        role: Role = "peer" if exact else "orientation"
        note = "" if exact else "float32 bin edges are inexact at these levels; for orientation only"
        for name, combine in (("roi_pool", _separate), ("roi_pool, coarse from fine", _nested)):
            form = partial(_regions, boxes=boxes, grids=grids, op=roi_pool, combine=combine)
            candidates.append(Candidate(name, form, role, note=note))
    count = min(_CROPS, case.boxes) if case.backward else case.boxes

    def crops(x: Tensor) -> Tensor:
        maps, windows = _channels_last(x), box_cells(boxes, case)[:count].tolist()
        parts = [maps[i : i + 1, :, top:bottom, left:right] for i, left, top, right, bottom in windows]
        return torch.cat([_adaptive(part, grids, reduce, _nested) for part in parts])

    note = "" if count == case.boxes else f"{count} of {case.boxes} windows timed, scaled to all"
    note_align = "averages 2 x 2 samples per bin, a different quantity; for orientation only"
    return [
        *candidates,
        Candidate("crops of channels_last", crops, share=count / case.boxes, note=note),
        Candidate("roi_align", lambda x: _regions(x, boxes, grids, _align, _separate), "orientation", note=note_align),
    ]


def limit(case: Case, x: Float[Tensor, "n c h w"], out: Float[Tensor, "k d"]) -> Callable[[], object]:
    """Return a function in which torch only reads the input once and writes the output once.

    It writes to newly allocated memory for regions, whose outputs are large, and to a reused buffer for whole maps.
    """
    x, gradient = x.detach(), torch.empty_like(x)
    allocate = torch.empty_like if case.boxes else lambda tensor: tensor

    def run() -> None:
        x.sum()
        allocate(out).fill_(1)
        if case.backward:
            out.sum()
            allocate(gradient).fill_(1)

    return run


def call(form: Form, x: Float[Tensor, "n c h w"], grad: Float[Tensor, "k d"] | None) -> Callable[[], object]:
    """Return the function to time: `form`, with its backward pass if `grad` is given."""
    if grad is None:
        return lambda: form(x)
    return lambda: torch.autograd.grad(form(x), x, grad)


def proposals(count: int, height: int, width: int, seed: int = 0) -> Float[Tensor, "k 4"]:
    """Draw reproducible random boxes that resemble object proposals.

    First, `count` / 4 boxes are drawn: area log-uniform between 32 x 32 pixels and 0.9 of the image, aspect ratio
    log-uniform between 1/3 and 3, position uniform. Each proposal is a random one of them, with every edge shifted by
    normal noise of 3% of the side. No box extends beyond the last cell of a map of stride 16, which under the rule
    ``roi_pool`` is half a stride before the image's edge.

    Args:
        count: number of boxes.
        height: image height in pixels.
        width: image width in pixels.
        seed: random seed.

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
    """Draw proposals for each image of the case, at stride 16."""
    images, _, height, width = case.shape
    counts = [case.boxes // images + (index < case.boxes % images) for index in range(images)]
    proposed = [proposals(count, height * _STRIDE, width * _STRIDE, seed) for seed, count in enumerate(counts)]
    return [boxes.to(case.device) for boxes in proposed]


def box_cells(boxes: list[Tensor], case: Case) -> Int[Tensor, "k 5"]:
    """Convert boxes to windows of cells: image index, then half-open xyxy cells."""
    counts = torch.tensor([len(part) for part in boxes], device=case.device)
    images = torch.arange(len(boxes), device=case.device).repeat_interleave(counts)
    scale, offset = (1 / _STRIDE, 1 / _STRIDE), (0.0, 0.0)
    return box_windows(torch.cat(boxes), images, case.shape[2:], scale, offset, "roi_pool")


Pool = Callable[[tuple[int, int]], Tensor]


def _separate(pool: Pool, grids: Grids) -> Tensor:
    """Pool each level from the map."""
    return torch.cat([pool(grid).flatten(1) for grid in grids], dim=1)


def _nested(pool: Pool, grids: Grids) -> Tensor:
    """Pool each level from the coarsest finished level that it divides, or else from the map; for maxima only."""
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
    if reduce == "avg":  # means of overlapping bins cannot be derived from finer levels
        return _separate(lambda grid: F.adaptive_avg_pool2d(x, grid), grids)
    return combine(lambda grid: F.adaptive_max_pool2d(x, grid), grids)


def _regions(
    x: Tensor, boxes: list[Tensor], grids: Grids, op: Callable[..., Tensor], combine: Callable[[Pool, Grids], Tensor]
) -> Tensor:
    maps = x.float() if x.element_size() < 4 else x  # torchvision requires boxes in the dtype of the map
    return combine(lambda grid: op(maps, boxes, grid, 1 / _STRIDE), grids).to(x.dtype)


def _align(x: Tensor, boxes: list[Tensor], grid: tuple[int, int], scale: float) -> Tensor:
    pooled: Tensor = roi_align(x, boxes, grid, scale, sampling_ratio=2)
    return pooled


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
