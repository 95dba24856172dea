"""Smaller heads of detectors: truncated SVD of the fully connected layers (Fast R-CNN, section 3.1), and bfloat16."""

import copy
from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import nn

from sppnet.detect.model import Detector
from sppnet.errors import choose

HeadDtype = Literal["float32", "bfloat16"]


def truncated_svd(linear: nn.Linear, rank: int) -> nn.Sequential:
    """Two layers in place of one: W, of shape (out, in), becomes U Sigma_t V^T of its `rank` greatest singular values.

    At the full rank, min(in, out), the layer's outputs are reproduced. There are rank * (in + out) weights instead of
    in * out.

    Args:
        linear: with or without a bias; it stays as it is.
        rank: 1..min(in, out).

    Returns:
        Sigma_t V^T without a bias, then U with the layer's bias, in its dtype and on its device.

    Raises:
        ValueError: no such rank.
    """
    weight = linear.weight.detach()
    most = min(weight.shape)
    if not 1 <= rank <= most:
        layer = f"a layer {linear.in_features} -> {linear.out_features}"
        raise ValueError(f"rank: expected 1..{most}, which is the full rank of {layer}; got {rank}")
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    kind = {"device": weight.device, "dtype": weight.dtype}
    first = nn.Linear(linear.in_features, rank, bias=False, **kind)
    second = nn.Linear(rank, linear.out_features, bias=linear.bias is not None, **kind)
    with torch.no_grad():
        first.weight.copy_(values[:rank, None] * right[:rank])
        second.weight.copy_(left[:, :rank])
        if linear.bias is not None:
            second.bias.copy_(linear.bias)
    return nn.Sequential(first, second).train(linear.training)


def compress(detector: Detector, ranks: tuple[int, ...] = (), head_dtype: HeadDtype = "float32") -> Detector:
    """A detector with a smaller head that shares its convolutions with the given one, which stays as it is.

    The copy is for running: its weights have other shapes than `config` says, so a run folder cannot hold it.

    Args:
        detector: with fc6, fc7 and so on as they were trained.
        ranks: of :func:`truncated_svd`, one for each fc layer; none at all leaves them whole.
        head_dtype: in which fc layers, scores and offsets are computed; what is detected has float32 all the same.

    Raises:
        ValueError: not one rank a layer, a rank above the full one, or another dtype.
    """
    choose("head_dtype", head_dtype, get_args(HeadDtype))
    names = [name for name, layer in detector.fc.named_children() if isinstance(layer, nn.Linear)]
    if ranks and len(ranks) != len(names):
        raise ValueError(f"ranks: expected one for each of {len(names)} fc layers {names}, or none; got {ranks}")
    # What the memo knows is not copied: the encoder is shared, and the fc layers are replaced below.
    small = copy.deepcopy(detector, {id(part): part for part in (detector.encoder, detector.fc)})
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    wanted = dict(zip(names, ranks, strict=bool(ranks)))
    for name, layer in detector.fc.named_children():
        if name in wanted:
            try:
                layers[name] = truncated_svd(layer, wanted[name])  # type: ignore[arg-type]
            except ValueError as error:
                raise ValueError(f"ranks: {name}: {error}") from error
        else:
            layers[name] = copy.deepcopy(layer)
    small.fc = nn.Sequential(layers).train(detector.fc.training)
    for head in (small.fc, small.score, small.offsets):
        if head is not None:
            head.to(getattr(torch, head_dtype))
    return small
