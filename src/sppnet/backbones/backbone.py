"""Feature extraction with any timm network that has a feature map, a network of the SPP-net paper, or a module."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.backbones.geometry import Geometry
from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.backbones.networks import (
    PAPER_CONFIG,
    check_name,
    check_stage,
    count_channels,
    create_timm,
    find_network,
    last_stage_within,
    patch_map,
    preprocessing,
    read_maps,
    trace_form,
    trace_map,
    trace_once,
)
from sppnet.backbones.padded.ledger import PaddingError
from sppnet.backbones.padded.mode import PaddedBatch
from sppnet.backbones.paper import PAPER_NETS
from sppnet.backbones.same_padding import integer_padding_when_compiled
from sppnet.backbones.weights import BUNDLED, bundled_source, embedded_weights, load_weights, read_weights
from sppnet.ops.pyramid import Sizes


@dataclass(frozen=True)
class FeatureMap:
    """A batch of feature maps and the positions of their cells on the images.

    Attributes:
        data: feature maps (N, C, H, W).
        stride: (vertical, horizontal) distance between neighboring cells in input pixels.
        offset: (vertical, horizontal) position of the first cell's center as a 0-based input pixel index, for an
            image of the full batch size. With TensorFlow's SAME padding, smaller images of a padded batch have
            different offsets, see :meth:`sppnet.backbones.geometry.Geometry.offset`.
        sizes: valid (rows, columns) of each map of a padded batch; None if all of `data` is valid.
        prefix: tokens of a transformer that are no cells of the map (N, T, C), the class token first where there is
            one, then registers; None for networks without.
    """

    data: Tensor
    stride: tuple[int, int]
    offset: tuple[float, float]
    sizes: tuple[tuple[int, int], ...] | None = None
    prefix: Tensor | None = None


class Stage(NamedTuple):
    """Channels of a feature map, and the positions of its cells on the images."""

    channels: int
    geometry: Geometry


class Backbone(nn.Module):
    """A network truncated at one of its feature maps, built by :func:`create_backbone`.

    Attributes:
        name: name of the timm network or of the paper's network; the class of a module.
        named: whether :func:`create_backbone` can rebuild the network from its name; False for a module.
        stage: index of the feature map, None for the last one.
        channels: number of channels of the map.
        geometry: stride, offset and map sizes, see :class:`sppnet.backbones.geometry.Geometry`.
        mean, std: normalization constants per RGB channel, for values in [0, 1].
        interpolation: resize interpolation used in training the weights.
        side: image side used in training the weights, in pixels.
        frozen: modules that stay in evaluation mode, see :func:`sppnet.backbones.stages.freeze_stages`.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        stage: int | None,
        config: dict[str, Any],
        output_stride: int = 32,
        named: bool = True,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.named, self.stage = name, named, stage
        self.network, self.output_stride = network, output_stride
        self.frozen: list[nn.Module] = []
        self.mean: tuple[float, ...] = tuple(config["mean"])
        self.std: tuple[float, ...] = tuple(config["std"])
        self.interpolation: str = config["interpolation"]
        self.side: int = config["input_size"][-1]
        self._key = (name, output_stride, stage) if named else None
        trace = partial(trace_map, network, name, stage, self.side)
        self.geometry, self._form = (
            trace_once(self._key, trace) if stride is None else patch_map(network, stage, stride)
        )
        self.channels: int = count_channels(network, name, stage, self._form, self.geometry)
        self._stages = {stage: Stage(self.channels, self.geometry)}

    @property
    def multiple(self) -> int:
        """Side in pixels whose multiples the network accepts; other images are padded at the bottom and right."""
        return self.geometry.multiple

    def forward(self, x: Float[Tensor, "n 3 h w"], sizes: Sizes | None = None) -> FeatureMap:
        """Compute the feature maps of a normalized batch.

        Args:
            x: normalized images.
            sizes: valid (height, width) in pixels of each image of a padded batch; images are aligned to the top
                left. The valid cells of each map equal those of the image by itself, whatever values the
                padding has, see :class:`sppnet.backbones.padded.mode.PaddedBatch`.

        Raises:
            TypeError: `x` does not have a floating-point dtype.
            sppnet.PaddingError: a layer of the network does not support padded batches; the message names it.
            ValueError: an image is too small for a single cell (the message gives the minimum size), or `sizes`
                does not match the images.
        """
        return self.maps(x, (self.stage,), sizes)[0]

    def maps(
        self, x: Float[Tensor, "n 3 h w"], stages: Sequence[int | None], sizes: Sizes | None = None
    ) -> list[FeatureMap]:
        """Compute the feature maps of several stages in one pass.

        Args:
            x: normalized images.
            stages: indices of the maps, see :meth:`check_stage`; None for the last map of a backbone whose `stage` is
                None.
            sizes: sizes of the images of a padded batch, as for :meth:`forward`.

        Raises:
            TypeError, ValueError, sppnet.PaddingError: as for :meth:`forward`.
        """
        self._check_images(x)
        infos = [self.stage_info(stage) for stage in stages]
        rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        areas = None if rows is None else [(int(height), int(width)) for height, width in rows]
        if areas is not None:
            _check_areas(areas, x)
            for area in areas:
                self._check_size(*area)
        if areas is None or all(area == x.shape[2:] for area in areas):
            maps = self._maps(self.network, x, stages)
            cells = [None if areas is None else (info.geometry.map_size(*x.shape[2:]),) * len(areas) for info in infos]
        else:
            maps, cells = self._padded_maps(x, stages, areas)
        return [
            FeatureMap(data, info.geometry.stride, info.geometry.offset(*x.shape[2:]), valid, prefix)
            for (data, prefix), info, valid in zip(maps, infos, cells, strict=True)
        ]

    def _padded_maps(
        self, x: Tensor, stages: Sequence[int | None], areas: list[tuple[int, int]]
    ) -> tuple[list[tuple[Tensor, Tensor | None]], list[Any]]:
        if self.multiple > 1:
            raise PaddingError(
                f"sizes: expected images of one size for {self.name}, which takes multiples of {self.multiple} pixels"
                f" and does not exclude padding from its computations, got {len(set(areas))} sizes; use batches of"
                " images of equal size"
            )
        with PaddedBatch(self.network, self.geometry.same) as batch:
            maps = self._maps(self.network, batch.enter(x, areas), stages)
            cells = [batch.areas(data) for data, _ in maps]
        for stage, valid in zip(stages, cells, strict=True):
            expected = tuple(self.stage_info(stage).geometry.map_size(*area) for area in areas)
            if valid != expected:
                raise PaddingError(f"sizes: expected maps of {expected} cells, got {valid}")
        return [(data, None) for data, _ in maps], cells

    def stage_info(self, stage: int | None) -> Stage:
        """Return the channels and the geometry of a stage; a call for a new stage traces the network.

        Args:
            stage: index of the map, from 0; None for the last map of a backbone whose `stage` is None.
        """
        if stage not in self._stages:
            trace = partial(trace_form, self.network, stage, "intermediates", self.multiple)
            geometry = trace_once(self._key and (*self._key, stage), trace)
            channels = count_channels(self.network, self.name, stage, "intermediates", geometry)
            self._stages[stage] = Stage(channels, geometry)
        return self._stages[stage]

    def check_stage(self, stage: int) -> int:
        """Return the index, from 0, of a stage that may count from the end.

        Raises:
            ValueError: the backbone ends before the stage, or only has one map.
        """
        if not hasattr(self.network, "forward_intermediates"):
            raise ValueError(f"stage: expected None for {self.name}, which has one feature map, got {stage}")
        info: Any = self.network.feature_info
        return check_stage(self.name, stage, len(info) if self.stage is None else self.stage + 1)

    def stage_within(self, stride: int) -> int:
        """Return the index of the last stage with at most this stride.

        Raises:
            ValueError: the stride of the finest map is larger, or there is only one map.
        """
        self.check_stage(0)
        return last_stage_within(self.name, self.network, stride)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of all modules except the frozen ones."""
        super().train(mode)
        for module in self.frozen:
            module.training = False
        return self

    def compile_network(self) -> None:
        """Compile the network for all sizes; the first calls take a minute, and the CPU needs a C++ compiler."""
        integer_padding_when_compiled()
        self._maps = torch.compile(self._maps, dynamic=True)  # type: ignore[method-assign]

    def _check_images(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"x: expected images (N, 3, H, W), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected normalized images of a floating-point dtype, got {x.dtype}")
        self._check_size(*x.shape[2:])

    def _check_size(self, height: int, width: int) -> None:
        if min(self.geometry.map_size(height, width)) < 1:
            least_height, least_width = self.geometry.smallest()
            raise ValueError(
                f"x: expected images of at least {least_height} x {least_width} pixels (height x width) for backbone"
                f" {self.name}, got {height} x {width}"
            )

    def _maps(self, network: nn.Module, x: Tensor, stages: Sequence[int | None]) -> list[tuple[Tensor, Tensor | None]]:
        if self.multiple == 1:
            return read_maps(network, x, stages, self._form)
        height, width = x.shape[2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        maps = read_maps(network, F.pad(x, padding), stages, self._form)
        sizes = [self.stage_info(stage).geometry.map_size(height, width) for stage in stages]
        return [
            (data[:, :, :rows, :columns], prefix) for (data, prefix), (rows, columns) in zip(maps, sizes, strict=True)
        ]


def _check_areas(areas: Sequence[Sequence[int]], x: Tensor) -> None:
    if len(areas) != len(x):
        raise ValueError(f"sizes: expected one (height, width) for each of the {len(x)} images, got {len(areas)}")
    height, width = x.shape[2:]
    for index, area in enumerate(areas):
        if area[0] > height or area[1] > width:
            text = f"sizes[{index}]: expected at most {height} x {width} pixels (height x width) as in x"
            raise ValueError(f"{text}, got {area[0]} x {area[1]}")


def create_backbone(
    name: str | nn.Module = EMBEDDED_BACKBONE,
    stage: int | None = None,
    weights: str | Path | None = "auto",
    *,
    output_stride: int = 32,
    stride: int | None = None,
) -> Backbone:
    """Build a backbone.

    Args:
        name: any timm network with a feature map for images of different sizes, ``zf5``, ``convnet5``, ``overfeat5``,
            ``overfeat7``, or a module: a timm network or another that maps images (N, 3, H, W) to feature maps
            (N, C, H', W'). A module keeps its weights; models with it cannot be saved, because there is no name to
            rebuild it from.
        stage: index of timm's feature map, 0 for the finest, -1 for the coarsest, or of a transformer's block; None for
            the map that feeds the network's own classifier. The paper's networks only provide that one.
        weights: ``auto`` uses bundled ImageNet weights for ``tf_efficientnet_lite0`` and, with the extra `lite2`, for
            ``tf_efficientnet_lite2``, random initialization for the paper's networks, and raises an error for any
            other name; ``hub`` downloads timm's weights; None or ``none`` keeps the random initialization; anything
            else is the path of a safetensors file.
        output_stride: 8 or 16 to replace strides in the last stages by dilated convolutions, which only some timm
            networks support.
        stride: side of a module's patches in pixels, if its cells are square patches side by side; None to trace its
            convolutions, pools and patch merges.

    Raises:
        OSError: timm's weights cannot be downloaded.
        ValueError: the name is unknown (the message lists close matches), the stage is out of range, the network
            does not support `output_stride`, it has no feature map whose geometry can be traced, or the weights do not
            match.
    """
    source = "none" if weights is None else str(weights)
    if isinstance(name, nn.Module):
        return _module_backbone(name, stage, source, stride)
    check_name(name)
    if stride is not None:
        raise ValueError(f"stride: expected None for {name}, whose layers are traced, got {stride}")
    if source == "auto":
        source = bundled_source(name)
    if name in PAPER_NETS:
        if output_stride != 32:
            raise ValueError(f"output_stride: expected 32 for {name}, got {output_stride}; use a timm network")
        return _paper_backbone(name, stage, source)
    if source == "embedded" and name not in BUNDLED:
        raise ValueError(f"weights: expected 'hub', 'none' or a safetensors file for {name}, got 'embedded'")
    network = create_timm(name, pretrained=source == "hub", output_stride=output_stride)
    if source == "embedded":
        load_weights(network, embedded_weights(network.blocks, name), name)  # type: ignore[arg-type]
    elif source not in ("hub", "none"):
        full_names, state = network.state_dict().keys(), read_weights(source)
        network.reset_classifier(0)  # type: ignore[operator]
        try:
            load_weights(network, state, source, spare=full_names)
        except ValueError as error:
            match = find_network(state, name, source)
            raise ValueError(f"{error}{f'; it fits {match}' if match else ''}") from None
    network.reset_classifier(0)  # type: ignore[operator]
    if stage is not None:
        stage = check_stage(name, stage, len(network.feature_info))  # type: ignore[arg-type]
        network.prune_intermediate_layers([stage], prune_head=True)  # type: ignore[operator]
    return Backbone(name, network, stage, preprocessing(network), output_stride)


def _module_backbone(module: nn.Module, stage: int | None, source: str, stride: int | None) -> Backbone:
    name = type(module).__name__
    if source not in ("auto", "none"):
        raise ValueError(f"weights: expected 'auto' for a module, which keeps its own weights, got {source!r}")
    if stride is not None and stride < 1:
        raise ValueError(f"stride: expected at least 1, got {stride}")
    if stage is not None and not hasattr(module, "forward_intermediates"):
        raise ValueError(
            f"stage: expected None for {name}, which does not have timm's forward_intermediates, got {stage}"
        )
    if stage is not None:
        stage = check_stage(name, stage, len(module.feature_info))  # type: ignore[arg-type]
    return Backbone(name, module, stage, preprocessing(module), named=False, stride=stride)


def _paper_backbone(name: str, stage: int | None, source: str) -> Backbone:
    if stage not in (None, -1):
        raise ValueError(f"stage: expected None or -1 for {name}, which has one feature map, got {stage}")
    if source in ("hub", "embedded"):
        raise ValueError(f"weights: expected 'none' or a safetensors file for {name}, got {source!r}")
    network = PAPER_NETS[name]()
    if source != "none":
        load_weights(network, read_weights(source), source)
    return Backbone(name, network, None, PAPER_CONFIG)
