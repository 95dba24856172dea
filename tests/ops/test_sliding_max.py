"""Sliding maxima: every variant against a slow reference, gradients, NaN, layouts, dynamic graphs, invalid input."""

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from sppnet.ops.sliding_max import VARIANTS, pick_variant, sliding_max

LAST = torch.channels_last
KERNELS = st.lists(st.integers(0, 20), min_size=1, max_size=4, unique=True).map(
    lambda halves: tuple(2 * half + 1 for half in sorted(halves))
)
SIZES = [(7, 9), (20, 31), (3, 2), (13, 40), (1, 5), (16, 6)]


def slow_max(x: Tensor, kernel: int) -> Tensor:
    """Take the maximum of the part of each window inside the map, one cell at a time."""
    half, out = kernel // 2, torch.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            window = x[:, :, max(i - half, 0) : i + half + 1, max(j - half, 0) : j + half + 1]
            out[:, :, i, j] = window.amax((2, 3))
    return out


def layouts(x: Tensor) -> dict[str, Tensor]:
    """Return the same values contiguous, channels_last, and as slices of larger maps in both layouts."""
    large = F.pad(x, (1, 2, 3, 1), value=torch.inf)
    cut = (slice(None), slice(None), slice(3, -1), slice(1, -2))
    return {
        "plain": x,
        "last": x.contiguous(memory_format=LAST),
        "cut": large[cut],
        "cut last": large.contiguous(memory_format=LAST)[cut],
    }


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 24), st.integers(1, 24), KERNELS)
def test_every_variant_matches_the_reference(variant: str, height: int, width: int, kernels: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, height, width)
    expected = [slow_max(x, kernel) for kernel in kernels]
    for name, layout in layouts(x).items():
        for pooled, reference in zip(VARIANTS[variant](layout, kernels), expected, strict=True):
            assert torch.equal(pooled, reference), name


@pytest.mark.slow
def test_all_variants_are_bit_identical_at_every_size_up_to_24() -> None:
    for height in range(1, 25):
        for width in range(1, 25):
            x = torch.randn(1, 4, height, width)
            for kernels in ((5, 9, 13), (3, 5, 7)):
                expected = torch.cat([F.max_pool2d(x, k, 1, k // 2) for k in kernels], 1)
                for layout in (x, x.contiguous(memory_format=LAST)):
                    for variant in VARIANTS.values():
                        assert torch.equal(torch.cat(variant(layout, kernels), 1), expected)


def test_seven_by_seven_computed_by_hand() -> None:
    maps = sliding_max(torch.arange(49.0).reshape(1, 1, 7, 7), (1, 5, 9, 13))
    assert [pooled[0, 0, 0, 0].item() for pooled in maps] == [0, 16, 32, 48]
    assert [pooled[0, 0, 3, 3].item() for pooled in maps] == [24, 40, 48, 48]
    assert maps[1][0, 0, 6].tolist() == [44, 45, 46, 47, 48, 48, 48]


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7])
def test_window_of_twice_the_side_minus_1_gives_the_global_maximum(side: int) -> None:
    x = torch.randn(2, 3, side, side)
    (pooled,) = sliding_max(x, (2 * side - 1,))
    assert torch.equal(pooled, x.amax((2, 3), keepdim=True).expand_as(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_keeps_the_dtype(variant: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 9, 11).to(dtype)
    for pooled, kernel in zip(VARIANTS[variant](x, (3, 9)), (3, 9), strict=True):
        assert pooled.dtype == dtype
        assert torch.equal(pooled.double(), slow_max(x.double(), kernel))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("last", [False, True])
def test_nan_propagates_only_to_windows_that_contain_it(variant: str, last: bool) -> None:
    x = torch.randn(1, 2, 8, 9)
    x[0, 0, 2, 3] = torch.nan
    x[0, 1] = -torch.inf
    expected = torch.zeros(8, 9, dtype=torch.bool)
    expected[0:5, 1:6] = True
    pooled = VARIANTS[variant](x.contiguous(memory_format=LAST) if last else x, (5,))[0]
    assert torch.equal(pooled[0, 0].isnan(), expected)
    assert (pooled[0, 1] == -torch.inf).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("last", [False, True])
def test_all_variants_have_the_same_gradient_without_ties(size: tuple[int, int], last: bool) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    x = (x.contiguous(memory_format=LAST) if last else x).requires_grad_()
    weight = torch.randn(2, 9, *size, dtype=torch.float64)
    gradients = {
        name: torch.autograd.grad(torch.cat(variant(x, (5, 9, 13)), 1), x, weight)[0]
        for name, variant in VARIANTS.items()
    }
    for name, gradient in gradients.items():
        assert (gradient - gradients["parallel"]).abs().max() < 1e-12, name


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_gradcheck(variant: str) -> None:
    x = torch.randperm(2 * 4 * 5).double().reshape(1, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: torch.cat(VARIANTS[variant](t, (3, 7)), 1), x)


@pytest.mark.parametrize("size", [(4, 5), (20, 20)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_keeps_shape_and_memory_layout(size: tuple[int, int], last: bool, gradient: bool) -> None:
    x = torch.randn(2, 3, *size).contiguous(memory_format=LAST if last else torch.contiguous_format)
    maps = sliding_max(x.requires_grad_(gradient), (5, 9))
    assert [pooled.shape for pooled in maps] == [x.shape] * 2
    assert [pooled.stride(1) == 1 for pooled in maps] == [last] * 2
    assert torch.cat([x, *maps], 1).is_contiguous(memory_format=LAST if last else torch.contiguous_format)


def test_empty_batch_gives_empty_maps() -> None:
    for size in ((3, 4), (20, 30)):
        assert [pooled.shape for pooled in sliding_max(torch.zeros(0, 8, *size), (5, 9))] == [(0, 8, *size)] * 2


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_vmap(variant: str) -> None:
    x = torch.randn(4, 2, 3, 9, 8)

    def pool(maps: Tensor) -> Tensor:
        return torch.cat(VARIANTS[variant](maps, (5, 9)), 1)

    assert torch.equal(torch.vmap(pool)(x), torch.stack([pool(maps) for maps in x]))


@pytest.mark.parametrize(
    ("shape", "last", "gradient", "name"),
    [
        ((1, 256, 20, 20), False, False, "shifted"),
        ((1, 256, 20, 20), True, False, "shifted"),
        ((1, 256, 20, 20), False, True, "chain_last"),
        ((1, 256, 20, 20), True, True, "chain_last"),
        ((8, 512, 7, 7), False, False, "separable_last"),
        ((8, 512, 13, 13), True, False, "separable_last"),
        ((8, 512, 13, 13), False, False, "shifted"),
        ((8, 512, 13, 14), True, False, "shifted"),
        ((1, 128, 8, 16), False, False, "separable_last"),
    ],
)
def test_picked_variant(shape: tuple[int, ...], last: bool, gradient: bool, name: str) -> None:
    x = torch.empty(shape).contiguous(memory_format=LAST if last else torch.contiguous_format)
    assert pick_variant(x.requires_grad_(gradient)) == name
    with torch.no_grad():
        assert pick_variant(x) != "chain_last"
    assert pick_variant(x.to("meta")) == "chain"


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.usefixtures("unchecked", "fresh_compiler")
def test_compiles_one_graph_for_all_sizes(gradient: bool) -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def pool(x: Tensor) -> Tensor:
        return torch.cat(sliding_max(x, (5, 9, 13)), 1)

    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend=counter)
    for height, width in [*((7, 9), (20, 31), (13, 40), (16, 6), (5, 3)), *((side, side) for side in (2, 8, 30))]:
        x = torch.randn(2, 4, height, width, requires_grad=gradient)
        pooled = compiled(x)
        assert torch.equal(pooled, pool(x))
        if gradient:
            weight = torch.randn_like(pooled)
            gradients = [torch.autograd.grad(out, x, weight)[0] for out in (pooled, pool(x))]
            torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.usefixtures("unchecked")
def test_trace_runs_at_other_sizes() -> None:
    traced = torch.jit.trace(lambda t: torch.cat(sliding_max(t, (5, 9)), 1), torch.randn(1, 2, 20, 30))
    x = torch.randn(3, 2, 7, 11)
    assert torch.equal(traced(x), torch.cat(sliding_max(x, (5, 9)), 1))


@pytest.mark.parametrize(
    ("kernels", "error", "message"),
    [
        ((4,), ValueError, r"kernels\[0\]: expected an odd side of at least 1, got 4; nearest legal side: 3 or 5"),
        ((5, 8), ValueError, r"kernels\[1\]: .*at least 7 \(larger than the previous one\), got 8; .* side: 7 or 9"),
        ((5, 9, 9), ValueError, r"kernels\[2\]: .*at least 11 .*, got 9; nearest legal side: 11"),
        ((13, 9, 5), ValueError, r"kernels\[1\]: .*at least 15 .*, got 9"),
        ((2,), ValueError, "legal side: 1 or 3"),
        ((0,), ValueError, "legal side: 1$"),
        ((-3,), ValueError, "legal side: 1$"),
        ((), ValueError, "at least one side"),
        (5, TypeError, r"a sequence of odd sides such as \(5, 9, 13\), got 5"),
        ((5.0,), TypeError, "a sequence of odd sides"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_kernels(kernels: Sequence[int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sliding_max(torch.zeros(1, 1, 4, 4), kernels)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 4, 5), ValueError, r"4 dimensions \(N, C, H, W\), got shape \(3, 4, 5\)"),
        (torch.zeros(1, 3, 0, 5), ValueError, "at least 1 channel and 1 x 1 cells"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.uint8), TypeError, "floating-point tensor .* got a tensor of torch.uint8"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_maps(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sliding_max(x, (5,))
