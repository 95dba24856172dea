"""Compression of detector heads: truncated SVD of fully connected layers (Fast R-CNN, section 3.1) and bfloat16."""

import copy
from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import nn

from sppnet.detect.model import Detector
from sppnet.errors import check_choice

HeadDtype = Literal["float32", "bfloat16"]


def truncated_svd(linear: nn.Linear, rank: int) -> nn.Sequential:
    """Replace a linear layer with weights W, of shape (out, in), by two layers U and Sigma V^T of the given rank.

    The two layers have rank * (in + out) weights instead of in * out. At full rank, min(in, out), they reproduce the
    outputs of the layer.

    Args:
        linear: layer with or without a bias; it is not modified.
        rank: number of singular values to keep, 1..min(in, out).

    Returns:
        Sigma V^T without a bias, then U with the bias of the layer; same dtype and device as the layer.

    Raises:
        ValueError: rank out of range.
    """
    weight = linear.weight.detach()
    full_rank = min(weight.shape)
    if not 1 <= rank <= full_rank:
        layer = f"{linear.in_features} -> {linear.out_features}"
        raise ValueError(f"rank: expected 1..{full_rank}, got {rank}; the full rank of a layer {layer} is {full_rank}")
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    factory = {"device": weight.device, "dtype": weight.dtype}
    first = nn.Linear(linear.in_features, rank, bias=False, **factory)
    second = nn.Linear(rank, linear.out_features, bias=linear.bias is not None, **factory)
    with torch.no_grad():
        first.weight.copy_(values[:rank, None] * right[:rank])
        second.weight.copy_(left[:, :rank])
        if linear.bias is not None:
            second.bias.copy_(linear.bias)
    return nn.Sequential(first, second).train(linear.training)


def compress(detector: Detector, ranks: tuple[int, ...] = (), head_dtype: HeadDtype = "float32") -> Detector:
    """Return a detector with a smaller head that shares the encoder of the given one.

    The result is for inference: its layers do not match its `config`, so it cannot be saved to a run folder.

    Args:
        detector: trained detector; it is not modified.
        ranks: rank of each fc layer, see :func:`truncated_svd`; empty to keep the layers.
        head_dtype: dtype of the fc layers, scores and offsets; detections are float32 in any case.

    Raises:
        ValueError: wrong number of ranks, rank out of range, or unsupported dtype.
    """
    check_choice("head_dtype", head_dtype, get_args(HeadDtype))
    names = [name for name, layer in detector.fc.named_children() if isinstance(layer, nn.Linear)]
    if ranks and len(ranks) != len(names):
        raise ValueError(f"ranks: expected one for each of the {len(names)} fc layers {names}, or none, got {ranks}")
    # Modules in the memo are not copied: the encoder is shared, and the fc layers are replaced below.
    small = copy.deepcopy(detector, {id(part): part for part in (detector.encoder, detector.fc)})
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    rank_by_name = dict(zip(names, ranks, strict=bool(ranks)))
    for name, layer in detector.fc.named_children():
        if name in rank_by_name:
            try:
                layers[name] = truncated_svd(layer, rank_by_name[name])  # type: ignore[arg-type]
            except ValueError as error:
                raise ValueError(f"ranks: {name}: {error}") from error
        else:
            layers[name] = copy.deepcopy(layer)
    small.fc = nn.Sequential(layers).train(detector.fc.training)
    for head in (small.fc, small.score, small.offsets):
        if head is not None:
            head.to(getattr(torch, head_dtype))
    return small
