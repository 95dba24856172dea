"""Feature extraction with any timm network that has a feature map, a network of the SPP-net paper, or a module."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    is_plain,
    last_stage_within,
    patch_map,
    preprocessing,
    read_maps,
    trace_form,
    trace_map,
)
from sppnet.backbones.padded.ledger import PaddingError
from sppnet.backbones.padded.mode import PaddedBatch
from sppnet.backbones.paper import PAPER_NETS
from sppnet.backbones.same_padding import integer_padding_when_compiled
from sppnet.backbones.weights import BUNDLED, embedded_weights, load_weights, read_weights
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
        fine: index of the finer map that :meth:`both` also returns, or None.
        fine_channels, fine_geometry: channels and geometry of the finer map; only set if `fine` is not None.
        frozen: modules that stay in evaluation mode, see :func:`sppnet.backbones.stages.freeze_stages`.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        stage: int | None,
        config: dict[str, Any],
        fine: int | None = None,
        output_stride: int = 32,
        named: bool = True,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.named = name, named
        self.output_stride = output_stride
        self.stage = stage
        self.fine = fine
        self.network = network
        self.frozen: list[nn.Module] = []
        self.mean: tuple[float, ...] = tuple(config["mean"])
        self.std: tuple[float, ...] = tuple(config["std"])
        self.interpolation: str = config["interpolation"]
        self.side: int = config["input_size"][-1]
        traced = trace_map(network, name, stage, self.side) if stride is None else patch_map(network, stage, stride)
        self.geometry: Geometry = traced[0]
        self._form = traced[1]
        self.channels: int = count_channels(network, name, stage, self._form, self.geometry)
        if fine is not None:
            self.fine_geometry: Geometry = trace_form(network, fine, self._form, self.multiple)
            self.fine_channels: int = count_channels(network, name, fine, self._form, self.fine_geometry)

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
        self._check_images(x)
        rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        areas = None if rows is None else [(int(height), int(width)) for height, width in rows]
        if areas is not None:
            _check_areas(areas, x)
            for area in areas:
                self._check_size(*area)
        offset = self.geometry.offset(*x.shape[2:])
        if areas is None or all(area == x.shape[2:] for area in areas):
            ((data, prefix),) = self._maps(self.network, x, (self.stage,))
            cells = None if areas is None else (self.geometry.map_size(*x.shape[2:]),) * len(areas)
            return FeatureMap(data, self.geometry.stride, offset, cells, prefix)
        if self.multiple > 1:
            raise PaddingError(
                f"sizes: expected images of one size for {self.name}, which takes multiples of {self.multiple} pixels"
                f" and does not exclude padding from its computations, got {len(set(areas))} sizes; use batches of"
                " images of equal size"
            )
        with PaddedBatch(self.network, self.geometry.same) as batch:
            ((data, _),) = self._maps(self.network, batch.enter(x, areas), (self.stage,))
            cells = batch.areas(data)
        expected = tuple(self.geometry.map_size(*area) for area in areas)
        if cells != expected:
            raise PaddingError(f"sizes: expected maps of {expected} cells, got {cells}")
        return FeatureMap(data, self.geometry.stride, offset, cells)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of all modules except the frozen ones."""
        super().train(mode)
        for module in self.frozen:
            module.training = False
        return self

    def both(self, x: Float[Tensor, "n 3 h w"]) -> tuple[FeatureMap, FeatureMap]:
        """Compute the map and the finer map of a normalized batch in one pass.

        Raises:
            TypeError, ValueError: as for :meth:`forward`, or the backbone was created without `fine_stride`.
        """
        if self.fine is None:
            raise ValueError(f"fine_stride: expected a maximum stride when backbone {self.name} is created, got None")
        self._check_images(x)
        (fine, _), (data, prefix) = self._maps(self.network, x, (self.fine, self.stage))
        return (
            FeatureMap(data, self.geometry.stride, self.geometry.offset(*x.shape[2:]), prefix=prefix),
            FeatureMap(fine, self.fine_geometry.stride, self.fine_geometry.offset(*x.shape[2:])),
        )

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
        geometries = [self.geometry if stage == self.stage else self.fine_geometry for stage in stages]
        sizes = [geometry.map_size(height, width) for geometry in geometries]
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
    fine_stride: int | None = None,
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
        fine_stride: maximum stride of an additional finer map for :meth:`Backbone.both`; requires `stage`.
        stride: side of a module's patches in pixels, if its cells are square patches side by side; None to trace its
            convolutions, pools and patch merges.

    Raises:
        OSError: timm's weights cannot be downloaded.
        ValueError: the name is unknown (the message lists close matches), the stage is out of range, the network
            does not support `output_stride`, it has no feature map whose geometry can be traced, or the weights do not
            match.
    """
    source = "none" if weights is None else str(weights)
    if fine_stride is not None and stage is None:
        raise ValueError(f"fine_stride: expected None without a stage, got {fine_stride}; pass a stage, such as -1")
    if isinstance(name, nn.Module):
        return _module_backbone(name, stage, source, fine_stride, stride)
    check_name(name)
    if stride is not None:
        raise ValueError(f"stride: expected None for {name}, whose layers are traced, got {stride}")
    if source == "auto":
        source = _automatic(name)
    if name in PAPER_NETS:
        if output_stride != 32 or fine_stride is not None:
            raise ValueError(
                f"output_stride: expected 32 and fine_stride None for {name}, got {output_stride} and {fine_stride};"
                " use a timm network"
            )
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
    stage, fine = _stages(name, network, stage, fine_stride)
    if stage is not None:
        network.prune_intermediate_layers([stage], prune_head=True)  # type: ignore[operator]
    return Backbone(name, network, stage, preprocessing(network), fine, output_stride)


def _module_backbone(
    module: nn.Module, stage: int | None, source: str, fine_stride: int | None, stride: int | None
) -> Backbone:
    name = type(module).__name__
    if source not in ("auto", "none"):
        raise ValueError(f"weights: expected 'auto' for a module, which keeps its own weights, got {source!r}")
    if stride is not None and stride < 1:
        raise ValueError(f"stride: expected at least 1, got {stride}")
    if stage is not None and not hasattr(module, "forward_intermediates"):
        raise ValueError(
            f"stage: expected None for {name}, which does not have timm's forward_intermediates, got {stage}"
        )
    stage, fine = _stages(name, module, stage, fine_stride)
    return Backbone(name, module, stage, preprocessing(module), fine, named=False, stride=stride)


def _stages(name: str, network: nn.Module, stage: int | None, fine_stride: int | None) -> tuple[int | None, int | None]:
    """Return the indices, from 0, of a stage and of the finer map."""
    if stage is None:
        return None, None
    stage = check_stage(name, stage, len(network.feature_info))  # type: ignore[arg-type]
    return stage, None if fine_stride is None else last_stage_within(name, network, fine_stride)


def stage_of_stride(name: str, stride: int) -> int | None:
    """Return the index of a network's last feature map with at most this stride, for :func:`create_backbone`.

    Args:
        name: network name as for :func:`create_backbone`; the result is None for the paper's networks, and for plain
            transformers whose patches are not larger.
        stride: maximum stride in image pixels, at least the stride of the first map.
    """
    check_name(name)
    if name in PAPER_NETS:
        return None
    with torch.device("meta"):
        network = create_timm(name, pretrained=False)
    stage = last_stage_within(name, network, stride)
    return None if is_plain(network) else stage


def _paper_backbone(name: str, stage: int | None, source: str) -> Backbone:
    if stage not in (None, -1):
        raise ValueError(f"stage: expected None or -1 for {name}, which has one feature map, got {stage}")
    if source in ("hub", "embedded"):
        raise ValueError(f"weights: expected 'none' or a safetensors file for {name}, got {source!r}")
    network = PAPER_NETS[name]()
    if source != "none":
        load_weights(network, read_weights(source), source)
    return Backbone(name, network, None, PAPER_CONFIG)


def _automatic(name: str) -> str:
    if name in BUNDLED:
        return "embedded"
    if name in PAPER_NETS:
        return "none"
    raise ValueError(
        f"weights: expected 'hub' (download from timm), 'none' (random initialization) or the path of a safetensors"
        f" file for {name}, got 'auto'; only {' and '.join(BUNDLED)} have bundled weights"
    )
