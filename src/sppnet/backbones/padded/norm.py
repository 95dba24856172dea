"""Batch norm with statistics over the valid cells of padded batches, synchronized across processes."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sppnet.layers.norms import shares_statistics

# Image, row and column index of each padding cell of a padded batch.
PaddingIndices = tuple[Int[Tensor, " p"], Int[Tensor, " p"], Int[Tensor, " p"]]


def valid_batch_norm(
    x: Float[Tensor, "n c h w"],
    running_mean: Float[Tensor, " c"] | None,
    running_var: Float[Tensor, " c"] | None,
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    momentum: float,
    eps: float,
    outside: PaddingIndices | None = None,
) -> Float[Tensor, "n c h w"]:
    """Apply training batch norm with statistics over the valid cells of all processes; padding becomes 0.

    Args:
        x: padded batch, with finite values in the padding.
        running_mean: running mean, updated in place as by torch; None if not tracked.
        running_var: running unbiased variance, updated in place as by torch; None if not tracked.
        weight: scale per channel, None for 1.
        bias: shift per channel, None for 0.
        momentum: weight of the new statistics in the running ones.
        eps: constant added to the variance.
        outside: image, row and column indices of the padding cells; None if all cells are valid.

    Raises:
        ValueError: there is only one valid cell, which has no variance.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = x.new_ones(x.shape[1], dtype=wide) if weight is None else weight.to(wide)
    bias = torch.zeros_like(weight) if bias is None else bias.to(wide)
    count, mean, squares = _merge(*_moments(x.detach(), outside))
    if count < 2:
        raise ValueError("x: expected more than 1 valid cell per channel for batch norm in training, got 1")
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((squares / (count - 1)).to(running_var.dtype), momentum)
    out: Tensor = _BatchNorm.apply(x, weight, bias, mean.to(wide), (squares / count).to(wide), count, eps, outside)
    return out


class SyncBatchNormMode(TorchFunctionMode):
    """Mode in which training batch norm uses statistics over the batches of all processes.

    Like ``torch.nn.SyncBatchNorm``, but it also runs on the CPU and applies to every call of ``F.batch_norm``.
    """

    def __enter__(self) -> "SyncBatchNormMode":
        self._token = shares_statistics.set(True)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        shares_statistics.reset(self._token)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = batch_norm_arguments(*args, **(kwargs or {})) if func is F.batch_norm else {}
        return valid_batch_norm(**values) if values.pop("training", False) else func(*args, **(kwargs or {}))


def batch_norm_arguments(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> dict[str, Any]:
    """Return the arguments of an ``F.batch_norm`` call, named as in :func:`valid_batch_norm`, and `training`."""
    return {
        "x": input, "running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias,
        "training": training, "momentum": momentum, "eps": eps,
    }  # fmt: skip


def _moments(x: Tensor, outside: PaddingIndices | None) -> tuple[int, Tensor, Tensor]:
    """Return the number of valid cells and, per channel, their mean and sum of squared deviations.

    The statistics of all cells come from torch's fast kernel and are then corrected for the padding cells.
    """
    total = x.numel() // x.shape[1]
    all_mean, all_var = torch.batch_norm_update_stats(x, None, None, 0.0)
    all_mean, all_var = all_mean.double(), all_var.double()
    if outside is None:
        return total, all_mean, all_var * total
    image, row, column = outside
    padding = x[image, :, row, column].double()
    count = total - len(padding)
    mean = (all_mean * total - padding.sum(0)) / count
    squares = (all_var + (all_mean - mean).square()) * total - (padding - mean).square().sum(0)
    return count, mean, squares.clamp(min=0)


def _merge(count: int, mean: Tensor, squares: Tensor) -> tuple[int, Tensor, Tensor]:
    """Combine the moments of all processes."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return count, mean, squares
    local = torch.stack((torch.full_like(mean, count), mean, squares))
    gathered = local.new_empty(dist.get_world_size(), *local.shape)
    dist.all_gather(list(gathered), local)
    counts, means, all_squares = gathered.unbind(1)
    total = counts.sum(0)
    merged = (counts * means).sum(0) / total
    return int(total[0]), merged, (all_squares + counts * (means - merged).square()).sum(0)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: int, eps: float,
        outside: PaddingIndices | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps, ctx.outside = count, eps, outside
        return fill_padding(F.batch_norm(x, mean, var, weight, bias, eps=eps), outside)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of batch norm over `count` valid cells; incoming padding gradients are ignored."""
        x, weight, mean, var = ctx.saved_tensors
        scale = torch.rsqrt(var + ctx.eps)
        _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, mean, scale, False, ctx.eps, [False, True, True]
        )
        if ctx.outside is not None:
            image, row, column = ctx.outside
            padding = grad[image, :, row, column].to(mean.dtype)
            grad_bias = grad_bias - padding.sum(0)
            grad_weight = grad_weight - (padding * (x[image, :, row, column] - mean) * scale).sum(0)
        sums = torch.stack((grad_weight, grad_bias))
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        # The gradient through mean and variance is affine in x, for which batch norm has the fastest kernel.
        slope = -weight * scale.square() * sums[0] / ctx.count
        shift = -weight * scale * sums[1] / ctx.count - slope * mean
        grad_x = F.batch_norm(x, torch.zeros_like(mean), torch.ones_like(var), slope, shift, eps=0.0)
        grad_x.addcmul_(grad, (weight * scale).to(grad.dtype).view(1, -1, 1, 1))
        return fill_padding(grad_x, ctx.outside), grad_weight, grad_bias, None, None, None, None, None


def fill_padding(
    x: Float[Tensor, "n c h w"], outside: PaddingIndices | None, value: float = 0.0
) -> Float[Tensor, "n c h w"]:
    """Set the padding cells to a value, in place."""
    if outside is not None:
        image, row, column = outside
        x[image, :, row, column] = value
    return x
