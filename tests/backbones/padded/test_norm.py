"""Batch norm over the valid cells of a padded batch, compared with torch's on the list of those cells."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet import create_backbone
from sppnet.backbones.padded.mode import PaddedBatch
from sppnet.backbones.padded.norm import PaddingIndices, valid_batch_norm
from tests.helpers.padded_layers import Area, crop

AREAS = ((5, 7), (2, 3), (4, 1), (1, 1))


def outside_of(areas: tuple[Area, ...], rows: int, columns: int) -> PaddingIndices:
    mask = torch.ones(len(areas), rows, columns, dtype=torch.bool)
    for index, (height, width) in enumerate(areas):
        mask[index, :height, :width] = False
    image, row, column = mask.nonzero(as_tuple=True)
    return image, row, column


def valid_cells(x: Tensor, areas: tuple[Area, ...]) -> Tensor:
    """Return the valid cells (cells, channels), image by image."""
    return torch.cat([image[:, :h, :w].flatten(1).T for image, (h, w) in zip(x, areas, strict=True)])


def random_batch(dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    return (3 + 2 * torch.randn(4, 6, 6, 8, dtype=torch.float64)).to(dtype).contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("affine", [True, False])
def test_matches_batch_norm_over_valid_cells(
    layout: torch.memory_format, dtype: torch.dtype, bound: float, affine: bool
) -> None:
    x = random_batch(dtype, layout).requires_grad_()
    weight, bias = (torch.randn(6, dtype=dtype).requires_grad_() if affine else None for _ in range(2))
    running = torch.randn(6, dtype=dtype), torch.rand(6, dtype=dtype)
    expected_running = running[0].clone(), running[1].clone()
    out = valid_batch_norm(x, *running, weight, bias, 0.3, 1e-5, outside_of(AREAS, 6, 8))
    upstream = torch.randn(4, 6, 6, 8, dtype=dtype)
    leaves = [x, weight, bias] if weight is not None and bias is not None else [x]
    gradients = torch.autograd.grad(out, leaves, upstream)

    flat_x = valid_cells(x.detach(), AREAS).requires_grad_()
    expected = F.batch_norm(flat_x, *expected_running, weight, bias, True, 0.3, 1e-5)
    expected_gradients = torch.autograd.grad(expected, [flat_x, *leaves[1:]], valid_cells(upstream, AREAS))

    torch.testing.assert_close(valid_cells(out, AREAS), expected, rtol=bound, atol=bound)
    torch.testing.assert_close(running, expected_running, rtol=bound, atol=bound)
    torch.testing.assert_close(valid_cells(gradients[0], AREAS), expected_gradients[0], rtol=bound, atol=bound)
    torch.testing.assert_close(gradients[1:], expected_gradients[1:], rtol=bound, atol=4 * bound)
    image, row, column = outside_of(AREAS, 6, 8)
    assert not out[image, :, row, column].any()
    assert not gradients[0][image, :, row, column].any()


def test_equals_torch_without_padding() -> None:
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 4, 5, 6), (4,), (4,)))
    running = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    expected = F.batch_norm(x, None, None, weight, bias, True)
    torch.testing.assert_close(valid_batch_norm(x, *running, weight, bias, 0.1, 1e-5), expected)


@pytest.mark.parametrize("outside", [None, outside_of(((2, 3), (1, 2)), 3, 3)])
def test_gradients_match_finite_differences(outside: PaddingIndices | None) -> None:
    shapes = ((2, 2, 3, 3), (2,), (2,))
    inputs = tuple(torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes)
    assert torch.autograd.gradcheck(
        lambda x, weight, bias: valid_batch_norm(x, None, None, weight, bias, 0.1, 1e-5, outside), inputs
    )


def test_few_valid_cells_keep_precision() -> None:
    """Correcting the statistics of all cells for the padding must not lose the precision of few valid cells."""
    x = torch.randn(4, 3, 64, 64) * 5 + 20
    areas = ((2, 3),) * 4
    out = valid_batch_norm(x, None, None, None, None, 0.1, 1e-5, outside_of(areas, 64, 64))
    expected = F.batch_norm(valid_cells(x.double(), areas), None, None, training=True)
    torch.testing.assert_close(valid_cells(out, areas).double(), expected, rtol=0, atol=1e-4)


def test_rejects_single_valid_cell() -> None:
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"x: expected more than 1 valid cell per channel .* in training, got 1$"):
        valid_batch_norm(x, None, None, None, None, 0.1, 1e-5, outside_of(((1, 1),), 4, 4))
    with (
        pytest.raises(ValueError, match="more than 1 valid cell per channel"),
        PaddedBatch(network := nn.BatchNorm2d(3), same=False) as batch,
    ):
        network(batch.enter(x, [(1, 1)]))


def outputs_and_gradients(
    name: str, x: Tensor, sizes: list[Area] | None, area: Area
) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
    torch.manual_seed(1)
    backbone = create_backbone(name, weights="none").train().double()
    rows, columns = backbone.geometry.map_size(*area)
    data = backbone(x, sizes).data[:, :, :rows, :columns]
    torch.manual_seed(2)
    (data * torch.randn_like(data)).sum().backward()
    return data.detach(), [p.grad for p in backbone.parameters()], list(backbone.buffers())


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "tf_mobilenetv3_small_minimal_100", "test_convnext3"]
)
def test_training_with_padding_matches_training_without(name: str) -> None:
    """Compare outputs, parameter gradients and running statistics for images of one size."""
    x = torch.randn(3, 3, 68, 75, dtype=torch.float64)
    canvas = torch.full((3, 3, 91, 102), torch.nan, dtype=torch.float64)
    canvas[:, :, :68, :75] = x
    outputs, gradients, buffers = outputs_and_gradients(name, canvas, [(68, 75)] * 3, (68, 75))
    expected, expected_gradients, expected_buffers = outputs_and_gradients(name, x, None, (68, 75))
    torch.testing.assert_close(outputs, expected, rtol=1e-8, atol=1e-8)
    assert sum(gradient is not None for gradient in gradients) > 5
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(buffers, expected_buffers, rtol=1e-8, atol=1e-8)


def two_layers() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4),
    ).double().train()  # fmt: skip


def run_separately(network: nn.Sequential, images: list[Tensor]) -> list[Tensor]:
    """Run convolutions image by image and norms over the concatenated cells of all images."""
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            shapes = [image.shape for image in images]
            flat = layer(torch.cat([image[0].flatten(1) for image in images], 1)[None, :, :, None])[0, :, :, 0]
            parts = flat.split([shape[2] * shape[3] for shape in shapes], 1)
            images = [part.reshape(shape).clone() for part, shape in zip(parts, shapes, strict=True)]
        else:
            images = [layer(image) for image in images]
    return images


def test_mixed_sizes_match_separate_images_with_joint_norms() -> None:
    areas = [(9, 12), (4, 4), (7, 1)]
    x = torch.full((3, 3, 9, 12), torch.inf, dtype=torch.float64)
    for image, (height, width) in zip(x, areas, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    images = [image.clone().requires_grad_() for image in crop(x, areas)]
    x.requires_grad_()
    network, reference = two_layers(), two_layers()
    with PaddedBatch(network, same=False) as batch:
        out = network(batch.enter(x, areas))
        map_areas = batch.areas(out)
    maps = crop(out, map_areas)
    expected = run_separately(reference, images)
    torch.testing.assert_close(maps, expected, rtol=1e-10, atol=1e-10)
    for batch_maps in (maps, expected):
        torch.stack([data.square().sum() + data.sum().sin() for data in batch_maps]).sum().backward()
    for parameter, expected_parameter in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected_parameter.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(list(network.buffers()), list(reference.buffers()), rtol=1e-10, atol=1e-10)
    assert x.grad is not None
    for gradient, image, (height, width) in zip(x.grad, images, areas, strict=True):
        assert image.grad is not None
        torch.testing.assert_close(gradient[:, :height, :width], image.grad[0], rtol=1e-9, atol=1e-9)
        assert gradient.count_nonzero() == gradient[:, :height, :width].count_nonzero() > 0


def test_bfloat16_training() -> None:
    network = two_layers().bfloat16()
    x = torch.randn(2, 3, 9, 12, dtype=torch.bfloat16)
    with PaddedBatch(network, same=False) as batch:
        out = network(batch.enter(x, [(9, 12), (5, 6)]))
    out.square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
