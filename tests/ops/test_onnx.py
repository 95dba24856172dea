"""The pyramid in standard ONNX operators: equal to torch at sizes that were not traced."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sppnet.ops import library
from tests.helpers.openvino_model import openvino_model

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
onnx_ops = pytest.importorskip("sppnet.ops.onnx")


@pytest.fixture(autouse=True)
def _without_shape_checks() -> Iterator[None]:
    """Disable shape checks: sizes are symbols in a graph, which the type checks do not accept as int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Pool(nn.Module):
    """The operator alone, on maps or on windows of maps: maxima, then means."""

    def __init__(self, levels: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor, windows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        maxima, means = (library.pool(x, windows, self.levels, "adaptive", reduce) for reduce in ("max", "avg"))
        return maxima, means


def export(module: Pool, path: Path, *inputs: str) -> Any:
    """Write a module of the input "x", and "windows" if named, and open it in onnxruntime."""
    names = ["x", *inputs]
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
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def assert_pooled(outputs: list[Any], expected: tuple[Tensor, Tensor]) -> None:
    """Check that maxima are equal bit for bit and means up to rounding."""
    np.testing.assert_array_equal(outputs[0], expected[0].numpy())
    assert outputs[1].shape == expected[1].shape
    np.testing.assert_allclose(outputs[1], expected[1].numpy(), rtol=0, atol=1e-6)


def test_pools_maps_of_any_size(tmp_path: Path) -> None:
    """Sides up to 20, also smaller than the levels; levels that nest, that do not nest, and duplicates."""
    module = Pool(((6, 6), (3, 3), (4, 6), (2, 3), (1, 1), (6, 6), (5, 2)))
    session = export(module, tmp_path / "pool.onnx")
    for height in range(1, 21):
        x = torch.randn(2, 3, height, 21 - height)
        assert_pooled(session.run(None, {"x": x.numpy()}), module(x))


def test_pools_any_number_of_windows_inside_and_outside_the_map(tmp_path: Path) -> None:
    module = Pool(((4, 4), (2, 2), (3, 1), (1, 1)))
    session = export(module, tmp_path / "pool.onnx", "windows")
    rng = np.random.default_rng(0)
    for count in [0, 1, *[20] * 20]:
        height, width = rng.integers(1, 12, 2)
        corners = np.sort(rng.integers(-6, 18, (count, 2, 2)), axis=1).reshape(count, 4)
        windows = torch.from_numpy(np.concatenate([rng.integers(0, 2, (count, 1)), corners], axis=1))
        x = torch.randn(2, 3, height, width)
        assert_pooled(session.run(None, {"x": x.numpy(), "windows": windows.numpy()}), module(x, windows))


def test_cuts_only_grids_that_no_finer_grid_contains() -> None:
    assert onnx_ops._roots([(6, 6), (3, 3), (2, 2), (1, 1)], "max") == [(6, 6)]
    assert onnx_ops._roots([(1, 1), (4, 4), (6, 6), (4, 4)], "max") == [(6, 6), (4, 4)]
    assert onnx_ops._roots([(2, 3), (4, 3), (3, 4)], "max") == [(4, 3), (3, 4)]
    assert onnx_ops._roots([(1, 1), (4, 4), (1, 1)], "avg") == [(4, 4), (1, 1)]


@pytest.mark.slow
def test_openvino_pools_maps_smaller_than_the_levels(tmp_path: Path) -> None:
    module = Pool(((6, 6), (3, 3), (2, 2), (1, 1)))
    export(module, tmp_path / "pool.onnx")
    model = openvino_model(tmp_path / "pool.onnx")
    for height in range(1, 15):
        x = torch.randn(2, 3, height, 15 - height)
        assert_pooled(list(model({"x": x.numpy()}).values()), module(x))
