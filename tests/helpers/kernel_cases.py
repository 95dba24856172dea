"""Maps, windows and comparisons for the tests of the CPU kernels."""

import torch
from torch import Tensor

from sppnet.ops import reference
from sppnet.ops.cpu import dispatch as cpu
from sppnet.ops.levels import Reduce, Rule
from sppnet.ops.reference import Grids

SHAPES = [(2, 64, 13, 13), (3, 83, 17, 19), (2, 5, 3, 4), (1, 128, 20, 37), (2, 16, 1, 1), (2, 70, 5, 40)]
PYRAMIDS: list[Grids] = [[(4, 4), (2, 2), (1, 1)], [(1, 1), (3, 5), (6, 2), (2, 2)]]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16]
KINDS = ["normal", "ties", "nan", "lowest", "infinite"]


def make_map(shape: tuple[int, ...], kind: str, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """Make a random map with ties, NaN or infinities, as `kind` says."""
    x = torch.randn(shape)
    if kind == "ties":
        x = x.round()
    elif kind == "nan":
        x.view(-1)[torch.randint(x.numel(), (1 + x.numel() // 50,))] = torch.nan
    elif kind == "lowest":
        x.fill_(-torch.inf)
    elif kind == "infinite":
        x.view(-1)[::7], x.view(-1)[3::7] = torch.inf, -torch.inf
    return x.to(dtype).contiguous(memory_format=layout)


def make_windows(shape: tuple[int, ...], count: int, inside: bool) -> Tensor:
    """Make `count` windows and repeat the first third of them; they may leave the map unless `inside`."""
    low, sides = (0 if inside else -2), torch.tensor([shape[3], shape[2]])
    first = torch.stack([torch.randint(low, int(side), (count,)) for side in sides], 1)
    last = first + torch.randint(1, 8, (count, 2))
    last = torch.minimum(last, sides) if inside else last
    windows = torch.cat((torch.randint(shape[0], (count, 1)), first, last), 1)
    return torch.cat((windows, windows[: count // 3]))


def check_forward(x: Tensor, windows: Tensor | None, grids: Grids, rule: Rule, reduce: Reduce) -> None:
    """Compare values and cells with the reference."""
    expected, expected_cells = reference.forward(x, windows, grids, rule, reduce, True)
    for save in (False, True):
        values, cells = cpu.forward(x, windows, grids, rule, reduce, save)
        tolerance = 0.0 if reduce == "max" else 1e-5 if x.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(values, expected, equal_nan=True, rtol=tolerance, atol=tolerance)
        assert torch.equal(cells, expected_cells if save else torch.empty(0, dtype=torch.int32))


def check_backward(x: Tensor, windows: Tensor | None, grids: Grids, rule: Rule, reduce: Reduce) -> None:
    """Compare the gradient of the maps with the reference."""
    values, cells = reference.forward(x, windows, grids, rule, reduce, True)
    grad = torch.randn(values.shape).to(x.dtype)
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    arguments = (grad, cells, windows, list(x.shape), channels_last, grids, rule, reduce)
    actual, expected = cpu.backward(*arguments), reference.backward(*arguments)
    tolerance = 1e-5 if x.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    assert actual.stride() == expected.stride()
