"""Networks of timm and of users behind one interface: feature maps (N, C, H, W), prefix tokens and preprocessing."""

import difflib
import inspect
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from sppnet.backbones.geometry import Axis, Geometry, SizeError, Step, gives_map, trace_geometry
from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.paper import PAPER_NETS
from sppnet.errors import did_you_mean

Form = Literal["module", "features", "intermediates"]
"""How a network returns its maps: by a call, by timm's `forward_features`, or by its `forward_intermediates`."""

# timm's defaults, for modules that do not state theirs.
_IMAGENET = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "input_size": (3, 224, 224),
}
# The authors of SPP-net subtract 128 from values in 0..255 (Appendix A) and do not scale.
PAPER_CONFIG = {
    "mean": (128 / 255,) * 3,
    "std": (1 / 255,) * 3,
    "interpolation": "bilinear",
    "input_size": (3, 224, 224),
}


_TRACED: dict[Hashable, Any] = {}
T = TypeVar("T")


def read_maps(
    network: nn.Module, x: Tensor, stages: Sequence[int | None], form: Form
) -> list[tuple[Tensor, Tensor | None]]:
    """Return the maps (N, C, H, W) of the stages and their prefix tokens (N, T, C), or None for a network without.

    The map of stage None is that of timm's `forward_features`, after the last norm of a transformer; the maps of other
    stages are those of `forward_intermediates`, without it.
    """
    others = [stage for stage in stages if stage is not None]
    if len(others) < len(stages) == 1:
        return [_last_map(network, x, form)]
    forward: Callable[..., Any] = network.forward_intermediates  # type: ignore[assignment]
    options: dict[str, Any] = {"indices": sorted(set(others))}
    if "return_prefix_tokens" in inspect.signature(forward).parameters:
        options["return_prefix_tokens"] = True
    last: tuple[Tensor, Tensor | None] | None = None
    if len(others) == len(stages):
        maps = forward(x, intermediates_only=True, stop_early=True, **options)
    elif form == "features":
        final, maps = forward(x, **options)
        last = final, None
    else:  # the last norm of a transformer must not change the other maps
        maps = forward(x, intermediates_only=True, **options)
        last = _last_map(network, x, form)
    pairs = [(data, None) if isinstance(data, Tensor) else (data[0], data[1]) for data in maps]
    read: dict[int | None, Any] = dict(zip(options["indices"], pairs, strict=True)) | {None: last}
    return [read[stage] for stage in stages]


def _last_map(network: nn.Module, x: Tensor, form: Form) -> tuple[Tensor, Tensor | None]:
    if form == "module":
        return network(x), None
    if form == "features":
        return network.forward_features(x), None  # type: ignore[operator]
    forward: Callable[..., Any] = network.forward_intermediates  # type: ignore[assignment]
    options: dict[str, Any] = {"indices": 1, "norm": True, "intermediates_only": True}
    if "return_prefix_tokens" not in inspect.signature(forward).parameters:
        return forward(x, **options)[0], None
    last = forward(x, return_prefix_tokens=True, **options)[0]
    return (last, None) if isinstance(last, Tensor) else (last[0], last[1])


def trace_map(network: nn.Module, name: str, stage: int | None, side: int) -> tuple[Geometry, Form]:
    """Trace the map of a stage for images of any size, or else for multiples of its stride or of the training size.

    Raises:
        ValueError: the network does not give a map at such sizes, or the map does not follow from its layers.
    """
    forms = _forms(network, stage)
    errors: dict[Form, list[ValueError]] = {form: [] for form in forms}
    for multiple in dict.fromkeys((1, _reduction(network, stage), _reduction(network, None), side)):
        for form in forms:
            try:
                return trace_form(network, stage, form, multiple), form
            except ValueError as error:
                errors[form].append(error)
    # Networks that have `forward_intermediates` may return something else than a map from `forward_features`.
    form = forms[-1]
    cause = next((other for other in errors[form] if not isinstance(other, SizeError)), errors[form][0])
    if isinstance(cause, SizeError) and gives_map(network, partial(_read_map, stage=stage, form=form), side):
        reason = f"it only takes images of {side} x {side} pixels"
    else:
        reason = str(cause)
    where = "last feature map" if stage is None else f"stage {stage}"
    raise ValueError(
        f"backbone: expected a network with a feature map for images of different sizes, got {name} ({where}): {reason}"
    ) from cause


def trace_form(network: nn.Module, stage: int | None, form: Form, multiple: int) -> Geometry:
    """Trace the map of a stage that is read in one form, see :func:`sppnet.backbones.geometry.trace_geometry`."""
    geometry = trace_geometry(network, partial(_read_map, stage=stage, form=form), multiple)
    center = geometry.offset(256, 256)
    if any(position < -stride for position, stride in zip(center, geometry.stride, strict=True)):
        raise ValueError(f"its layers imply a first cell centered on pixel {center}, outside the image")
    return geometry


def trace_once(key: Hashable | None, trace: Callable[[], T]) -> T:
    """Return the result of a function that traces a network, from an earlier call of the same key if there was one.

    The key has everything that determines the layers of the network; None for an unknown network.
    """
    if key is None:
        return trace()
    if key not in _TRACED:
        _TRACED[key] = trace()
    result: T = _TRACED[key]
    return result


def patch_map(network: nn.Module, stage: int | None, stride: int) -> tuple[Geometry, Form]:
    """Return the geometry of a network whose cells are square patches side by side."""
    axis = Axis((Step(stride, stride),), stride)
    return Geometry(axis, axis), _forms(network, stage)[-1]


@torch.no_grad()
def count_channels(network: nn.Module, name: str, stage: int | None, form: Form, geometry: Geometry) -> int:
    """Return the channels of a map, from a small image.

    Raises:
        ValueError: the map does not have the size that the geometry implies.
    """
    multiple = geometry.multiple
    height, width = (-(-max(side, 64) // multiple) * multiple for side in geometry.smallest())
    width += multiple
    weight = next(network.parameters(), torch.zeros(()))
    probe = torch.zeros(1, 3, height, width, dtype=weight.dtype, device=weight.device)
    with evaluation_mode(network):
        data = _read_map(network, probe, stage, form)
    expected = geometry.map_size(height, width)
    shape = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
    if len(shape) != 4 or shape[2:] != expected:
        raise ValueError(
            f"stride: expected a network that gives maps (1, C, {expected[0]}, {expected[1]}) of images"
            f" {height} x {width}, got {shape} from {name}"
        )
    return int(shape[1])


def _read_map(network: nn.Module, x: Tensor, stage: int | None, form: Form) -> Tensor:
    return read_maps(network, x, (stage,), form)[0][0]


def _forms(network: nn.Module, stage: int | None) -> list[Form]:
    """Return the forms in which a network may give the map of a stage, the most direct first."""
    if not hasattr(network, "forward_intermediates"):
        return ["features" if hasattr(network, "forward_features") else "module"]
    return ["features", "intermediates"] if stage is None else ["intermediates"]


def preprocessing(network: nn.Module) -> dict[str, Any]:
    """Return the mean, std, interpolation and input_size of a network: its `pretrained_cfg`, or timm's defaults."""
    return _IMAGENET | dict(getattr(network, "pretrained_cfg", None) or {})


def check_name(name: str) -> None:
    """Check that a name is that of a timm network or one of the paper's networks.

    Raises:
        ValueError: it is not; the message lists close matches.
    """
    if name in PAPER_NETS:
        return
    import timm

    if not timm.is_model(name):
        hint = did_you_mean(name.rpartition("/")[2], [*PAPER_NETS, *timm.list_models()]) or "; see timm.list_models()"
        raise ValueError(f"backbone: expected a timm network or one of {', '.join(PAPER_NETS)}, got {name!r}{hint}")


def create_timm(name: str, pretrained: bool, output_stride: int = 32) -> nn.Module:
    """Create a timm network, for all image sizes where timm can.

    Args:
        name: name that passes :func:`check_name`.
        pretrained: whether to download timm's weights.
        output_stride: 8 or 16 for dilated convolutions; for a transformer, the stride of its map.

    Raises:
        OSError: the weights cannot be downloaded.
        ValueError: the network does not support `output_stride`, or timm has no weights for it.
    """
    dilated: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    try:
        return _create(name, pretrained, dilated)
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        if not dilated:
            raise
        network = _create(name, pretrained, {})
        if _reductions(network)[-1] == output_stride:
            return network
        raise ValueError(
            f"output_stride: expected 32 for {name}, which has no dilated variant in timm, got {output_stride};"
            " or use another network, such as resnet50"
        ) from error


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    import timm  # takes seconds to import and the operators do not need it

    with warnings.catch_warnings():
        # timm warns about renamed models; this package keeps the requested name.
        warnings.simplefilter("ignore")
        try:
            network: nn.Module = timm.create_model(name, pretrained=pretrained, dynamic_img_size=True, **options)
        except TypeError:  # most networks accept any size without the option, and do not have it
            network = timm.create_model(name, pretrained=pretrained, **options)
        except OSError as error:
            if not pretrained:
                raise
            reason = str(error).splitlines()[0]
            raise OSError(
                f"weights: {name} cannot be downloaded from the hub: {reason} Check the connection, or pass the path"
                " of a safetensors file, or 'none'"
            ) from error
    return network


def check_stage(name: str, stage: int, count: int) -> int:
    """Return the index of a stage from 0, for an index that may count from the end.

    Raises:
        ValueError: the network does not have the stage.
    """
    if not -count <= stage < count:
        raise ValueError(f"stage: expected {-count} to {count - 1} for {name}, got {stage}")
    return stage % count


def last_stage_within(name: str, network: nn.Module, stride: int) -> int:
    """Return the index of a network's last map with at most this stride.

    Raises:
        ValueError: the stride of the finest map is larger.
    """
    strides = _reductions(network)
    stages = [index for index, reduction in enumerate(strides) if reduction <= stride]
    if not stages:
        raise ValueError(f"stride: expected at least {strides[0]} (the finest map of {name}), got {stride}")
    return stages[-1]


def stage_of_stride(name: str, stride: int) -> int | None:
    """Return the index of a network's last feature map with at most this stride.

    Args:
        name: name of the network; the result is None for the paper's networks, and for plain transformers whose patches
            are not larger.
        stride: maximum stride in image pixels, at least the stride of the first map.
    """
    check_name(name)
    if name in PAPER_NETS:
        return None
    with torch.device("meta"):
        network = create_timm(name, pretrained=False)
    stage = last_stage_within(name, network, stride)
    return None if is_plain(network) else stage


def is_plain(network: nn.Module) -> bool:
    """Return whether all stages have one stride, as in a plain transformer."""
    return len(set(_reductions(network))) == 1


def _reduction(network: nn.Module, stage: int | None) -> int:
    """Return the stride that timm states for a stage, or 32 for a module that does not state it."""
    strides = _reductions(network) if hasattr(network, "feature_info") else [32]
    return strides[-1 if stage is None else stage]


def _reductions(network: nn.Module) -> list[int]:
    return [info["reduction"] for info in network.feature_info]  # type: ignore[union-attr]


def find_network(state: Mapping[str, Tensor], name: str, path: str | Path, seconds: float = 2) -> str | None:
    """Return the timm network that has the tensors of a file, or None if none is found in time.

    Args:
        state: the tensors, with or without a classifier.
        name: network that does not have them; those of its family are tried, the most similar names first.
        path: path of the file; networks whose names occur in it are tried before.
        seconds: time after which no further network is tried.
    """
    import timm

    deadline = time.monotonic() + seconds
    family = timm.list_models(module=timm.model_entrypoint(name).__module__.rpartition(".")[2])
    named = sorted((known for known in timm.list_models() if known in str(path)), key=len, reverse=True)
    similar = sorted(family, key=lambda known: -difflib.SequenceMatcher(None, known, name).ratio())
    shapes = {tensor_name: tensor.shape for tensor_name, tensor in state.items()}
    for candidate in dict.fromkeys(named + similar):
        if candidate == name:
            continue
        if time.monotonic() > deadline:
            break
        with torch.device("meta"):
            network = create_timm(candidate, pretrained=False)
        names = network.state_dict().keys()
        network.reset_classifier(0)  # type: ignore[operator]
        body = {tensor_name: tensor.shape for tensor_name, tensor in network.state_dict().items()}
        if body.items() <= shapes.items() and shapes.keys() <= names | body.keys():
            return candidate
    return None
