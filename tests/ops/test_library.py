"""The registered operator: opcheck, compile, export, vmap, determinism, worker processes, meta and fake tensors."""

import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from sppnet import pyramid_pool, region_pyramid_pool
from sppnet.ops.levels import Reduce

REDUCES: tuple[Reduce, ...] = ("max", "avg")
FORMATS = (torch.contiguous_format, torch.channels_last)
GRIDS = [3, 3, 1, 2]
# Images in any order, then xyxy cells: inside, the whole map, across the border, outside.
WINDOWS = torch.tensor([[1, 1, 1, 4, 5], [0, 0, 0, 6, 5], [0, -2, 3, 2, 9], [1, 20, 20, 22, 22]])
SIZES = [(7, 9), (9, 7), (13, 20), (5, 31), (32, 18), (24, 10), (11, 12), (40, 17), (6, 8), (19, 23)]


def some_boxes(count: int) -> Tensor:
    first = torch.rand(count, 2) * 30
    return torch.cat((first, first + torch.rand(count, 2) * 200), dim=1)


def maps(channels: int, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    return torch.randn(2, channels, 6, 7).to(dtype).contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck(dtype: torch.dtype, channels: int, memory_format: torch.memory_format) -> None:
    """Schema, fake tensors, registration of derivatives, tracing with dynamic sizes."""
    for windows, (reduce, save) in itertools.product((None, WINDOWS), (("max", False), ("max", True), ("avg", False))):
        x = maps(channels, dtype, memory_format).requires_grad_()
        torch.library.opcheck(torch.ops.sppnet.pool.default, (x, windows, GRIDS, "adaptive", reduce, save))


@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck_of_means_ignores_save(channels: int) -> None:
    x = maps(channels, torch.float32, torch.contiguous_format).requires_grad_()
    torch.library.opcheck(torch.ops.sppnet.pool.default, (x, WINDOWS, GRIDS, "adaptive", "avg", True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck_of_the_backward_operator(
    dtype: torch.dtype, channels: int, memory_format: torch.memory_format
) -> None:
    last = memory_format == torch.channels_last
    for windows, reduce in itertools.product((None, WINDOWS), REDUCES):
        x = maps(channels, dtype, memory_format)
        values, cells = torch.ops.sppnet.pool(x, windows, GRIDS, "adaptive", reduce, reduce == "max")
        grad = torch.randn_like(values).requires_grad_()
        arguments = (grad, cells, windows, list(x.shape), last, GRIDS, "adaptive", reduce)
        torch.library.opcheck(torch.ops.sppnet.pool_backward.default, arguments)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs(call: Callable[..., Tensor], inputs: Sequence[tuple[Tensor, ...]], backend: str = "aot_eager") -> list[int]:
    """Return the number of graphs compiled up to each call; check values and gradients against eager mode."""
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for x, *rest in inputs:
        result, expected = (value_and_gradient(pool, x, rest) for pool in (compiled, call))
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
        counts.append(counter.frame_count)
    return counts


def value_and_gradient(pool: Callable[..., Tensor], x: Tensor, rest: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    vectors = pool(x, *rest)
    weight = torch.linspace(-1, 1, vectors.numel()).reshape(vectors.shape)
    return vectors.detach(), torch.autograd.grad(vectors, x, weight)[0]


def some_maps(sizes: Sequence[tuple[int, int]] = SIZES, count: int = 2, channels: int = 16) -> list[Tensor]:
    return [torch.randn(count, channels, height, width) for height, width in sizes]


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.usefixtures("unchecked", "fresh_compiler")
def test_compiles_one_graph_for_ten_map_sizes(reduce: Reduce) -> None:
    inputs = [(x,) for x in some_maps()]
    assert graphs(lambda x: pyramid_pool(x, (6, 3, 2, 1), reduce=reduce), inputs) == [1] * 10


@pytest.mark.usefixtures("unchecked", "fresh_compiler")
def test_compiles_one_graph_for_ten_sizes_of_one_image() -> None:
    inputs = [(x,) for x in some_maps(count=1)]
    assert graphs(lambda x: pyramid_pool(x, (6, 3, 2, 1)), inputs) == [1] * 10


@pytest.mark.usefixtures("unchecked", "fresh_compiler")
def test_compiles_one_graph_for_ten_sizes_of_padded_batches() -> None:
    inputs = [(x, torch.tensor([[x.shape[2], 3], [1, x.shape[3]]])) for x in some_maps()]
    assert graphs(lambda x, sizes: pyramid_pool(x, (6, 3, 2, 1), sizes=sizes), inputs) == [1] * 10


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.usefixtures("unchecked", "fresh_compiler")
def test_compiles_one_graph_for_ten_sizes_and_numbers_of_boxes(reduce: Reduce) -> None:
    inputs = [(x, some_boxes(3 + i), some_boxes(14 - i)) for i, x in enumerate(some_maps(channels=20))]
    assert graphs(lambda x, a, b: region_pyramid_pool(x, [a, b], reduce=reduce), inputs) == [1] * 10


@pytest.mark.parametrize("rule", ["released", "roi_pool"])
@pytest.mark.usefixtures("unchecked", "fresh_compiler")
def test_first_graphs_serve_later_boxes_under_other_rules(rule: Any) -> None:
    """torch may trace the first call twice, to turn a scalar into a tensor."""
    inputs = [(x, some_boxes(3 + i)) for i, x in enumerate(some_maps(count=1, channels=20))]
    counts = graphs(lambda x, a: region_pyramid_pool(x, [a], rule=rule, offset=(1.0, 2.0)), inputs)
    assert len(set(counts)) == 1


@pytest.mark.usefixtures("unchecked", "fresh_compiler")
def test_square_first_map_costs_a_second_graph() -> None:
    """torch treats equal sizes in the first call as one size until a call has different ones."""
    inputs = [(x,) for x in some_maps([(8, 8), *SIZES])]
    assert graphs(lambda x: pyramid_pool(x, (6, 3, 2, 1)), inputs) == [1, *[2] * 10]


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked", "fresh_compiler")
def test_inductor_compiles_one_graph_for_ten_sizes() -> None:
    inputs = [(x, some_boxes(3 + i), some_boxes(14 - i)) for i, x in enumerate(some_maps(channels=20))]

    def both(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((pyramid_pool(x, (6, 3, 2, 1)), region_pyramid_pool(x, [a, b], reduce="avg")))

    assert graphs(both, inputs, "inductor") == [1] * 10


class Pyramid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return pyramid_pool(x, (3, 1))


class Padded(nn.Module):
    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        return pyramid_pool(x, (3, 1), sizes=sizes)


class Regions(nn.Module):
    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return region_pyramid_pool(x, [first, second], (3, 1))


N, H, W, K, L = (torch.export.Dim(name) for name in ("n", "h", "w", "k", "l"))


@pytest.mark.usefixtures("unchecked")
def test_exported_pyramid_runs_at_other_sizes() -> None:
    program = torch.export.export(Pyramid(), (torch.randn(2, 16, 7, 9),), dynamic_shapes=({0: N, 2: H, 3: W},))
    for n, height, width in ((5, 4, 13), (1, 1, 2), (3, 20, 20)):
        x = torch.randn(n, 16, height, width)
        assert torch.equal(program.module()(x), Pyramid()(x))


@pytest.mark.usefixtures("unchecked")
def test_exported_padded_batch_runs_at_other_sizes() -> None:
    traced = (torch.randn(2, 16, 7, 9), torch.tensor([[7, 2], [3, 9]]))
    program = torch.export.export(Padded(), traced, dynamic_shapes=({0: N, 2: H, 3: W}, {0: N}))
    for n, height, width in ((5, 4, 13), (3, 20, 20)):
        inputs = (torch.randn(n, 16, height, width), torch.tensor([[height, 1 + i] for i in range(n)]))
        assert torch.equal(program.module()(*inputs), Padded()(*inputs))


@pytest.mark.usefixtures("unchecked")
def test_exported_regions_run_at_other_sizes_and_numbers_of_boxes() -> None:
    """The number of images is fixed: the program has one input of boxes per image."""
    traced = (torch.randn(2, 16, 7, 9), some_boxes(4), some_boxes(5))
    program = torch.export.export(Regions(), traced, dynamic_shapes=({2: H, 3: W}, {0: K}, {0: L}))
    for height, width, first, second in ((4, 13, 8, 1), (1, 2, 2, 30)):
        inputs = (torch.randn(2, 16, height, width), some_boxes(first), some_boxes(second))
        assert torch.equal(program.module()(*inputs), Regions()(*inputs))


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("channels", [2, 16])
@pytest.mark.usefixtures("unchecked")
def test_vmap_over_maps_with_derivatives(reduce: Reduce, channels: int) -> None:
    boxes = [some_boxes(3), some_boxes(2)]
    pools: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda t: pyramid_pool(t, (3, 1), reduce=reduce),
        lambda t: region_pyramid_pool(t, boxes, (3, 1), reduce=reduce),
    )
    for pool in pools:
        for dim in (0, 1):
            x = torch.randn(3, 2, channels, 6, 7).movedim(0, dim).requires_grad_()
            batched, expected = torch.vmap(pool, dim)(x), torch.stack([pool(part) for part in x.unbind(dim)])
            assert torch.equal(batched, expected)
            weight = torch.randn_like(batched)
            gradients = [torch.autograd.grad(vectors, x, weight)[0] for vectors in (batched, expected)]
            torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduce", REDUCES)
def test_vmap_over_windows(reduce: Reduce) -> None:
    x = torch.randn(2, 16, 6, 7)
    several = torch.stack((WINDOWS, WINDOWS.flip(0), WINDOWS))

    def pool(maps: Tensor, windows: Tensor) -> Tensor:
        values: Tensor = torch.ops.sppnet.pool(maps, windows, GRIDS, "adaptive", reduce, False)[0]
        return values

    assert torch.equal(torch.vmap(pool, (None, 0))(x, several), torch.stack([pool(x, w) for w in several]))
    both = torch.stack((x, -x, x * 2))
    expected = torch.stack([pool(t, w) for t, w in zip(both, several, strict=True)])
    assert torch.equal(torch.vmap(pool)(both, several), expected)


def test_torch_rejects_func_grad() -> None:
    """torch.library.register_autograd does not support these transforms; plain autograd works."""
    with pytest.raises(RuntimeError, match=r"functorch transforms .* must override the setup_context"):
        torch.func.grad(lambda x: pyramid_pool(x, (2, 1)).sum())(torch.randn(1, 16, 6, 7))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_rejects_forward_mode() -> None:
    """Without the check, torch would silently return a zero tangent."""
    x = torch.randn(1, 16, 6, 7)
    with pytest.raises(NotImplementedError, match="x: forward-mode derivatives are not supported"):
        torch.func.jvp(lambda t: pyramid_pool(t, (2, 1)), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [3, 64])
def test_backward_is_deterministic(channels: int, memory_format: torch.memory_format) -> None:
    x = torch.randn(4, channels, 20, 30).contiguous(memory_format=memory_format)
    boxes = [some_boxes(30) for _ in x]
    torch.use_deterministic_algorithms(True)
    try:
        for reduce in REDUCES:
            runs = [
                value_and_gradient(
                    lambda t, kind=reduce: torch.cat(
                        (pyramid_pool(t, (6, 3, 2, 1), reduce=kind), region_pyramid_pool(t, boxes, reduce=kind))
                    ),
                    x,
                    (),
                )
                for _ in range(2)
            ]
            assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


class Pooled(Dataset[Tensor]):
    """Vectors pooled in the worker processes of a loader."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        x = torch.arange(32 * 900.0).sin().reshape(1, 32, 30, 30).roll(index, 3)
        vector = pyramid_pool(x, (6, 3, 2, 1))
        return torch.cat((vector, region_pyramid_pool(x, [torch.tensor([[9.0, 9.0, 300.0, 200.0]])])))


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
def test_loader_workers_match_the_main_process(context: str) -> None:
    """The parent pools before it forks, so that the child inherits a thread pool without its threads."""
    torch.set_num_threads(2)
    try:
        expected = list(DataLoader(Pooled(), batch_size=2))
        loader = DataLoader(Pooled(), batch_size=2, num_workers=2, multiprocessing_context=context, timeout=60)
        from_workers = list(loader)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.cat(from_workers), torch.cat(expected))


def test_meta_tensors() -> None:
    x = torch.empty(2, 16, 30, 40, device="meta", requires_grad=True)
    boxes = [some_boxes(3), some_boxes(0)]
    for vectors, shape in (
        (pyramid_pool(x, (6, 3, 2, 1)), (2, 800)),
        (pyramid_pool(x, (3, 1), sizes=[(2, 3), (30, 40)]), (2, 160)),
        (region_pyramid_pool(x, boxes, (3, 1)), (3, 160)),
    ):
        assert vectors.is_meta
        assert vectors.shape == shape
        assert torch.autograd.grad(vectors.sum(), x)[0].shape == x.shape


@pytest.mark.slow
def test_probe_of_torchs_adaptive_pools_prints_an_answer() -> None:
    script = Path(__file__).parents[2] / "scripts" / "probe_torch_export.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=900)
    assert run.returncode == 0, run.stderr
    assert re.search(r"^torch's adaptive pools export correctly for every size: (yes|no)$", run.stdout, re.MULTILINE)


def test_empty_and_inverted_windows_give_zeros() -> None:
    """Invalid `sizes` inside a graph, where they are not checked, become such windows."""
    windows = torch.tensor([[0, 0, 0, 3, 0], [1, 0, 0, -5, 4]])
    x = torch.randn(2, 32, 9, 13, requires_grad=True)
    values = torch.ops.sppnet.pool.default(x, windows, [2, 2, 1, 1], "adaptive", "max", True)[0]
    assert values.count_nonzero() == 0
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert gradient.count_nonzero() == 0


def test_ignores_the_default_device() -> None:
    x, boxes = torch.randn(1, 16, 9, 8), [torch.tensor([[0.0, 0.0, 90.0, 90.0]] * 4)]
    expected = pyramid_pool(x, (3, 1)), region_pyramid_pool(x, boxes)
    with torch.device("meta"):
        assert torch.equal(pyramid_pool(x, (3, 1)), expected[0])
        assert torch.equal(region_pyramid_pool(x, boxes), expected[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.usefixtures("unchecked")
def test_trace_runs_at_other_sizes() -> None:
    traced = torch.jit.trace(lambda t: pyramid_pool(t, (4, 2, 1)), torch.randn(2, 32, 9, 13), check_trace=False)
    x = torch.randn(2, 32, 7, 11)
    assert torch.equal(traced(x), pyramid_pool(x, (4, 2, 1)))


def test_negated_zero_and_batched_tensors() -> None:
    x = torch.randn(2, 32, 9, 13)
    assert torch.equal(pyramid_pool(torch._neg_view(x), (4, 1)), pyramid_pool(-x, (4, 1)))
    assert pyramid_pool(torch._efficientzerotensor(2, 32, 9, 13), (4, 1)).count_nonzero() == 0
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(pyramid_pool(x, (1,)), x, torch._neg_view(torch.ones(2, 32)))
    assert gradient.sum() == -64
    values = pyramid_pool(x, (1,))
    (batched,) = torch.autograd.grad(values, x, torch.stack([torch.ones_like(values)] * 3), is_grads_batched=True)
    assert batched.shape == (3, *x.shape)
    assert batched.sum() == 3 * 64


def test_rejects_sparse_maps() -> None:
    with pytest.raises(TypeError, match=r"expected a dense tensor, got layout torch\.sparse_coo"):
        pyramid_pool(torch.randn(1, 16, 4, 4).to_sparse(), (1,))


class Labeled(Tensor):
    """A subclass that stores its own values."""


class Wrapped(Tensor):
    """A subclass that wraps another tensor, like torchao's or DTensor."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> "Wrapped":
        wrapped = Tensor._make_wrapper_subclass(cls, elem.shape, dtype=elem.dtype, device=elem.device)
        wrapped.elem = elem
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        def unwrap(value: Any) -> Any:
            return value.elem if isinstance(value, Wrapped) else value

        out = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {}))
        return tree_map(lambda value: Wrapped(value) if isinstance(value, Tensor) else value, out)


def pool_map(x: Tensor, reduce: Reduce) -> Tensor:
    return pyramid_pool(x, (3, 2), reduce=reduce)


def pool_boxes(x: Tensor, reduce: Reduce) -> Tensor:
    boxes = [torch.tensor([[0.0, 0.0, 100.0, 64.0], [16.0, 16.0, 90.0, 130.0]])]
    return region_pyramid_pool(x, boxes, (3, 2), reduce=reduce)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [pool_map, pool_boxes])
@pytest.mark.parametrize("reduce", ["max", "avg"])
@pytest.mark.parametrize("kind", ["labeled", "wrapped"])
def test_gradients_of_tensor_subclasses(
    function: Callable[[Tensor, Reduce], Tensor], reduce: Reduce, kind: str
) -> None:
    values = torch.randn(1, 64, 10, 12)
    x = (Wrapped(values) if kind == "wrapped" else values.clone().as_subclass(Labeled)).requires_grad_()
    plain = values.clone().requires_grad_()
    expected = function(plain, reduce)
    grad = torch.randn(expected.shape)
    (gradient,) = torch.autograd.grad(function(x, reduce), x, grad)  # a plain gradient with wrapped cells
    assert type(gradient) is type(x)
    (expected_gradient,) = torch.autograd.grad(expected, plain, grad)
    elem = gradient.elem if isinstance(gradient, Wrapped) else gradient.as_subclass(Tensor)
    assert torch.equal(elem, expected_gradient)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [pool_map, pool_boxes])
@pytest.mark.parametrize("reduce", ["max", "avg"])
def test_fake_maps_have_fake_gradients(function: Callable[[Tensor, Reduce], Tensor], reduce: Reduce) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    x = mode.from_tensor(torch.randn(1, 64, 10, 12)).requires_grad_()
    values = function(x, reduce)
    (gradient,) = torch.autograd.grad(values, x, torch.randn(tuple(values.shape)))
    assert isinstance(gradient, FakeTensor)
    assert gradient.shape == x.shape
