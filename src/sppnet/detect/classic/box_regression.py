"""Linear box regression on pooled vectors, class by class, by ridge regression in closed form (R-CNN, appendix C)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# Directions in which the offsets hardly vary are not blown up.
_WHITENING_FLOOR = 0.001


def fit_box_regression(
    vectors: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    offsets: Float[Tensor, "n 4"],
    num_classes: int,
    penalty: float = 1000.0,
) -> nn.Linear:
    """A layer from vectors to the offsets of every class's boxes.

    For each class the offsets are centred and whitened, each of the four is fitted by ridge regression with a bias,
    which is penalised too, and all is undone in the layer's weights.

    Args:
        vectors: of windows that overlap an object well, in any precision; they are scaled to a mean norm of 20
            for the fit.
        labels: class of that object.
        offsets: from window to object, as :func:`sppnet.ops.boxes.encode` gives them.
        num_classes: a class without windows leaves boxes as they are.
        penalty: lambda of the ridge, on vectors of that norm; the SPP-net code has 4000, R-CNN's 1000.

    Returns:
        A layer with outputs (classes * 4).
    """
    layer = nn.Linear(vectors.shape[1], 4 * num_classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        norms = [part.float().norm(dim=1) for part in vectors.split(1024)]
        scale = 20.0 / float(torch.cat(norms).mean().clamp(min=1e-12)) if len(vectors) else 1.0
        for label in labels.unique().tolist():
            mine = labels == label
            weight, bias = _fit_class(vectors[mine].float().mul_(scale), offsets[mine].double(), penalty)
            layer.weight[4 * label : 4 * label + 4] = weight * scale
            layer.bias[4 * label : 4 * label + 4] = bias
    return layer


def whitening(offsets: Float[Tensor, "n 4"]) -> tuple[Float[Tensor, "4"], Float[Tensor, "4 4"], Float[Tensor, "4 4"]]:
    """Mean of offsets, the matrix T that whitens what is left, and its inverse; rows are offsets: (y - mean) @ T."""
    mean = offsets.mean(0)
    centred = offsets - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(offsets))
    spread = (variances.clamp(min=0) + _WHITENING_FLOOR).sqrt()
    return mean, directions @ (1 / spread).diag() @ directions.T, directions @ spread.diag() @ directions.T


def ridge(x: Float[Tensor, "n d"], y: Float[Tensor, "n m"], penalty: float) -> Float[Tensor, "d m"]:
    """Weights w that minimise ||x w - y||^2 + penalty ||w||^2, in whichever of the two forms is the smaller."""
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
