"""Batch norm whose statistics count valid cells only, over all processes of a training."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Image, row and column of each cell outside the images of a padded batch.
Outside = tuple[Int[Tensor, " p"], Int[Tensor, " p"], Int[Tensor, " p"]]


def valid_batch_norm(
    x: Float[Tensor, "n c h w"],
    running_mean: Float[Tensor, " c"] | None,
    running_var: Float[Tensor, " c"] | None,
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    momentum: float,
    eps: float,
    outside: Outside | None = None,
) -> Float[Tensor, "n c h w"]:
    """Batch norm of a training step over the valid cells of the batches of all processes; other cells become 0.

    Args:
        x: may hold anything finite outside.
        running_mean: brought forward in place, as by torch; None where it is not kept.
        running_var: as `running_mean`; of the unbiased variance.
        weight: scale of each channel, None for 1.
        bias: shift of each channel, None for 0.
        momentum: share of the new statistics.
        eps: added to the variance.
        outside: image, row and column of the cells that do not count; None where all do.

    Raises:
        ValueError: only one cell counts, which has no variance.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = x.new_ones(x.shape[1], dtype=wide) if weight is None else weight.to(wide)
    bias = torch.zeros_like(weight) if bias is None else bias.to(wide)
    count, mean, spread = _merge(*_moments(x.detach(), outside))
    if count < 2:
        raise ValueError("x: batch norm in training needs more than 1 valid cell a channel; got 1")
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((spread / (count - 1)).to(running_var.dtype), momentum)
    out: Tensor = _BatchNorm.apply(x, weight, bias, mean.to(wide), (spread / count).to(wide), count, eps, outside)
    return out


class SharedBatchNorm(TorchFunctionMode):
    """While this is active, batch norm in training takes its statistics over the batches of all processes.

    As ``torch.nn.SyncBatchNorm``, but on the CPU too, and for the batch norm of any module.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = arguments(*args, **(kwargs or {})) if func is F.batch_norm else {}
        return valid_batch_norm(**values) if values.pop("training", False) else func(*args, **(kwargs or {}))


def arguments(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> dict[str, Any]:
    """What a call of ``F.batch_norm`` was given, by the names that :func:`valid_batch_norm` has, and `training`."""
    return {
        "x": input, "running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias,
        "training": training, "momentum": momentum, "eps": eps,
    }  # fmt: skip


def _moments(x: Tensor, outside: Outside | None) -> tuple[int, Tensor, Tensor]:
    """Number of valid cells, each channel's mean over them, and its summed squares of distances from the mean.

    The statistics of all cells are corrected by the few outside: torch's own kernel then does the work.
    """
    everywhere = x.numel() // x.shape[1]
    all_mean, all_var = torch.batch_norm_update_stats(x, None, None, 0.0)
    all_mean, all_var = all_mean.double(), all_var.double()
    if outside is None:
        return everywhere, all_mean, all_var * everywhere
    image, row, column = outside
    rest = x[image, :, row, column].double()
    count = everywhere - len(rest)
    mean = (all_mean * everywhere - rest.sum(0)) / count
    spread = (all_var + (all_mean - mean).square()) * everywhere - (rest - mean).square().sum(0)
    return count, mean, spread.clamp(min=0)


def _merge(count: int, mean: Tensor, spread: Tensor) -> tuple[int, Tensor, Tensor]:
    """The same of the cells of all processes together."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return count, mean, spread
    own = torch.stack((torch.full_like(mean, count), mean, spread))
    parts = own.new_empty(dist.get_world_size(), *own.shape)
    dist.all_gather(list(parts), own)
    counts, means, spreads = parts.unbind(1)
    total = counts.sum(0)
    merged = (counts * means).sum(0) / total
    return int(total[0]), merged, (spreads + counts * (means - merged).square()).sum(0)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: int, eps: float,
        outside: Outside | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps, ctx.outside = count, eps, outside
        return set_outside(F.batch_norm(x, mean, var, weight, bias, eps=eps), outside)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of a batch norm of `count` cells; those that come for cells outside play no part."""
        x, weight, mean, var = ctx.saved_tensors
        scale = torch.rsqrt(var + ctx.eps)
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, mean, scale, False, ctx.eps, [False, True, True]
        )
        if ctx.outside is not None:
            image, row, column = ctx.outside
            rest = grad[image, :, row, column].to(mean.dtype)
            of_bias = of_bias - rest.sum(0)
            of_weight = of_weight - (rest * (x[image, :, row, column] - mean) * scale).sum(0)
        sums = torch.stack((of_weight, of_bias))
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        # The derivative through mean and variance is affine in x, for which batch norm has the fastest kernel.
        slope = -weight * scale.square() * sums[0] / ctx.count
        shift = -weight * scale * sums[1] / ctx.count - slope * mean
        of_x = F.batch_norm(x, torch.zeros_like(mean), torch.ones_like(var), slope, shift, eps=0.0)
        of_x.addcmul_(grad, (weight * scale).to(grad.dtype).view(1, -1, 1, 1))
        return set_outside(of_x, ctx.outside), of_weight, of_bias, None, None, None, None, None


def set_outside(x: Float[Tensor, "n c h w"], outside: Outside | None, value: float = 0.0) -> Float[Tensor, "n c h w"]:
    """Write a value, in place, into the cells outside."""
    if outside is not None:
        image, row, column = outside
        x[image, :, row, column] = value
    return x
