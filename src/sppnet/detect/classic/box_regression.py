"""Linear box regression on pooled vectors: closed-form ridge regression per class (R-CNN, appendix C)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sppnet.detect.classic.vector_scale import mean_norm_scale

# Added to the variances, so that whitening does not amplify directions in which the offsets hardly vary.
_WHITENING_FLOOR = 0.001


def fit_box_regression(
    vectors: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    offsets: Float[Tensor, "n 4"],
    num_classes: int,
    penalty: float = 1000.0,
) -> nn.Linear:
    """Fit a linear layer that predicts box offsets of every class from window vectors.

    For each class the offsets are centered and whitened, and each of the four is fitted by ridge regression with a
    penalized bias. The layer's weights undo the centering and whitening.

    Args:
        vectors: vectors of windows that overlap an object well, in any precision; they are scaled to a mean norm of 20
            for the fit.
        labels: class of the object of each window.
        offsets: offsets from windows to objects, from :func:`sppnet.ops.boxes.encode`.
        num_classes: number of classes; for a class without windows the layer predicts zero offsets.
        penalty: ridge penalty (lambda) on the scaled vectors; 4000 in the SPP-net code, 1000 in R-CNN's.

    Returns:
        Layer with 4 * num_classes outputs, grouped by class.
    """
    layer = nn.Linear(vectors.shape[1], 4 * num_classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        scale = mean_norm_scale(vectors.split(1024)) if len(vectors) else 1.0
        for label in labels.unique().tolist():
            of_class = labels == label
            weight, bias = _fit_class(vectors[of_class].float().mul_(scale), offsets[of_class].double(), penalty)
            layer.weight[4 * label : 4 * label + 4] = weight * scale
            layer.bias[4 * label : 4 * label + 4] = bias
    return layer


def whitening(offsets: Float[Tensor, "n 4"]) -> tuple[Float[Tensor, "4"], Float[Tensor, "4 4"], Float[Tensor, "4 4"]]:
    """Return the mean of the offsets, the matrix T that whitens them as (offsets - mean) @ T, and its inverse."""
    mean = offsets.mean(0)
    centered = offsets - mean
    variances, directions = torch.linalg.eigh(centered.T @ centered / len(offsets))
    spread = (variances.clamp(min=0) + _WHITENING_FLOOR).sqrt()
    return mean, directions @ (1 / spread).diag() @ directions.T, directions @ spread.diag() @ directions.T


def ridge(x: Float[Tensor, "n d"], y: Float[Tensor, "n m"], penalty: float) -> Float[Tensor, "d m"]:
    """Return the weights w that minimize ||x w - y||^2 + penalty ||w||^2, from the smaller of the two Gram matrices."""
    if len(x) < x.shape[1]:
        gram = x @ x.T
        gram.diagonal().add_(penalty)
        return x.T @ torch.cholesky_solve(y, torch.linalg.cholesky(gram))
    gram = x.T @ x
    gram.diagonal().add_(penalty)
    return torch.cholesky_solve(x.T @ y, torch.linalg.cholesky(gram))


def _fit_class(x: Float[Tensor, "n d"], y: Float[Tensor, "n 4"], penalty: float) -> tuple[Tensor, Tensor]:
    mean, whiten, unwhiten = whitening(y)
    ones = torch.ones(len(x), 1)
    weights = ridge(torch.cat((x, ones), dim=1), ((y - mean) @ whiten).float(), penalty) @ unwhiten.float()
    return weights[:-1].T, weights[-1] + mean.float()
