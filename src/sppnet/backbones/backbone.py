"""Feature extraction with any convolutional timm network or a network of the SPP-net paper."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.backbones.geometry import Geometry, trace_geometry
from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.backbones.padded.ledger import PaddingError
from sppnet.backbones.padded.mode import PaddedBatch
from sppnet.backbones.paper import PAPER_NETS
from sppnet.backbones.same_padding import integer_padding_when_compiled
from sppnet.backbones.weights import embedded_weights, load_weights, read_weights
from sppnet.errors import did_you_mean
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
    """

    data: Tensor
    stride: tuple[int, int]
    offset: tuple[float, float]
    sizes: tuple[tuple[int, int], ...] | None = None


class Backbone(nn.Module):
    """A network truncated at one of its feature maps, built by :func:`create_backbone`.

    Attributes:
        name: name of the timm network or of the paper's network.
        stage: index of the feature map, None for the last one.
        channels: number of channels of the map.
        geometry: stride, offset and map sizes, see :class:`sppnet.backbones.geometry.Geometry`.
        mean, std: normalization constants per RGB channel, for values in [0, 1].
        interpolation: resize interpolation used in training the weights.
        side: image side used in training the weights, in pixels.
        fine: index of the finer map that :meth:`both` also returns, or None.
        fine_channels, fine_geometry: channels and geometry of the finer map; only set if `fine` is not None.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        stage: int | None,
        config: dict[str, Any],
        fine: int | None = None,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        self.name = name
        self.output_stride = output_stride
        self.stage = stage
        self.fine = fine
        self.network = network
        self.geometry: Geometry = self._trace(stage)
        self.channels: int = self._count_channels(stage)
        if fine is not None:
            self.fine_geometry: Geometry = self._trace(fine)
            self.fine_channels: int = self._count_channels(fine)
        self.mean: tuple[float, ...] = tuple(config["mean"])
        self.std: tuple[float, ...] = tuple(config["std"])
        self.interpolation: str = config["interpolation"]
        self.side: int = config["input_size"][-1]

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
            (data,) = self._maps(self.network, x, (self.stage,))
            cells = None if areas is None else (self.geometry.map_size(*x.shape[2:]),) * len(areas)
            return FeatureMap(data, self.geometry.stride, offset, cells)
        with PaddedBatch(self.network, self.geometry.same) as batch:
            (data,) = self._maps(self.network, batch.enter(x, areas), (self.stage,))
            cells = batch.areas(data)
        expected = tuple(self.geometry.map_size(*area) for area in areas)
        if cells != expected:
            raise PaddingError(f"sizes: expected maps of {expected} cells, got {cells}")
        return FeatureMap(data, self.geometry.stride, offset, cells)

    def both(self, x: Float[Tensor, "n 3 h w"]) -> tuple[FeatureMap, FeatureMap]:
        """Compute the map and the finer map of a normalized batch in one pass.

        Raises:
            TypeError, ValueError: as for :meth:`forward`, or the backbone was created without `fine_stride`.
        """
        if self.fine is None:
            raise ValueError(f"fine_stride: expected a maximum stride when backbone {self.name} is created, got None")
        self._check_images(x)
        fine, data = self._maps(self.network, x, (self.fine, self.stage))
        return (
            FeatureMap(data, self.geometry.stride, self.geometry.offset(*x.shape[2:])),
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

    def _maps(self, network: nn.Module, x: Tensor, stages: Sequence[int | None]) -> list[Tensor]:
        if self.name in PAPER_NETS:
            return [network(x)]
        if stages == (None,):
            return [network.forward_features(x)]  # type: ignore[operator]
        maps: list[Tensor] = network.forward_intermediates(  # type: ignore[operator]
            x, indices=list(stages), intermediates_only=True, stop_early=True
        )
        return maps

    def _trace(self, stage: int | None) -> Geometry:
        try:
            return trace_geometry(self.network, lambda network, x: self._maps(network, x, (stage,))[0])
        except ValueError as error:
            where = "last feature map" if stage is None else f"stage {stage}"
            raise ValueError(
                f"backbone: expected a network with traceable feature map geometry, got {self.name} ({where}): {error}"
            ) from error

    @torch.no_grad()
    def _count_channels(self, stage: int | None) -> int:
        height, width = self.geometry.smallest()
        probe = torch.zeros(1, 3, max(height, 64), max(width, 64))
        with evaluation_mode(self.network):
            (data,) = self._maps(self.network, probe, (stage,))
        return data.shape[1]


def _check_areas(areas: Sequence[Sequence[int]], x: Tensor) -> None:
    if len(areas) != len(x):
        raise ValueError(f"sizes: expected one (height, width) for each of the {len(x)} images, got {len(areas)}")
    height, width = x.shape[2:]
    for index, area in enumerate(areas):
        if area[0] > height or area[1] > width:
            text = f"sizes[{index}]: expected at most {height} x {width} pixels (height x width) as in x"
            raise ValueError(f"{text}, got {area[0]} x {area[1]}")


def create_backbone(
    name: str = EMBEDDED_BACKBONE,
    stage: int | None = None,
    weights: str | Path | None = "auto",
    *,
    output_stride: int = 32,
    fine_stride: int | None = None,
) -> Backbone:
    """Build a backbone.

    Args:
        name: any convolutional timm network, or ``zf5``, ``convnet5``, ``overfeat5``, ``overfeat7``.
        stage: index of timm's feature map, 0 for the finest, -1 for the coarsest; None for the map that
            feeds the network's own classifier. The paper's networks only provide that one.
        weights: ``auto`` uses the bundled ImageNet weights for ``tf_efficientnet_lite0``, random initialization for
            the paper's networks, and raises an error for any other; ``hub`` downloads timm's weights; None or
            ``none`` keeps the random initialization; anything else is the path of a safetensors file.
        output_stride: 8 or 16 to replace strides in the last stages by dilated convolutions, which only some timm
            networks support.
        fine_stride: maximum stride of an additional finer map for :meth:`Backbone.both`; requires `stage`.

    Raises:
        ValueError: the name is unknown (the message lists close matches), the stage is out of range, the network
            does not support `output_stride`, its feature map geometry cannot be traced, or the weights do not match.
    """
    source = "none" if weights is None else str(weights)
    _check_name(name)
    if fine_stride is not None and stage is None:
        raise ValueError(f"fine_stride: expected None without a stage, got {fine_stride}; pass a stage, such as -1")
    if source == "auto":
        source = _automatic(name)
    if name in PAPER_NETS:
        if output_stride != 32 or fine_stride is not None:
            raise ValueError(
                f"output_stride: expected 32 and fine_stride None for {name}, got {output_stride} and {fine_stride};"
                " use a timm network"
            )
        return _paper_backbone(name, stage, source)
    network = _create_timm(name, pretrained=source == "hub", output_stride=output_stride)
    config = dict(network.pretrained_cfg)  # type: ignore[arg-type]
    if source == "embedded" and name != EMBEDDED_BACKBONE:
        raise ValueError(f"weights: expected 'hub', 'none' or a safetensors file for {name}, got 'embedded'")
    if source == "embedded":
        load_weights(network, embedded_weights(network.blocks), EMBEDDED_BACKBONE)  # type: ignore[arg-type]
    elif source not in ("hub", "none"):
        full_names = network.state_dict().keys()
        network.reset_classifier(0)  # type: ignore[operator]
        load_weights(network, read_weights(source), source, spare=full_names)
    network.reset_classifier(0)  # type: ignore[operator]
    fine = None
    if stage is not None:
        stage = _check_stage(name, stage, len(network.feature_info))  # type: ignore[arg-type]
        if fine_stride is not None:
            fine = _stage_of_stride(name, network, fine_stride)
        network.prune_intermediate_layers([stage], prune_head=True)  # type: ignore[operator]
    return Backbone(name, network, stage, config, fine, output_stride)


def stage_of_stride(name: str, stride: int) -> int | None:
    """Return the index of a network's last feature map with at most this stride, for :func:`create_backbone`.

    Args:
        name: network name as for :func:`create_backbone`; the result is None for the paper's networks.
        stride: maximum stride in image pixels, at least the stride of the first map.
    """
    _check_name(name)
    if name in PAPER_NETS:
        return None
    with torch.device("meta"):
        return _stage_of_stride(name, _create_timm(name, pretrained=False), stride)


def _stage_of_stride(name: str, network: nn.Module, stride: int) -> int:
    strides = [info["reduction"] for info in network.feature_info]  # type: ignore[union-attr]
    stages = [index for index, reduction in enumerate(strides) if reduction <= stride]
    if not stages:
        raise ValueError(f"stride: expected at least {strides[0]} (the finest map of {name}), got {stride}")
    return stages[-1]


def _create_timm(name: str, pretrained: bool, output_stride: int = 32) -> nn.Module:
    import timm  # takes seconds to import and the operators do not need it

    options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    with warnings.catch_warnings():
        # timm warns about renamed models; this package keeps the requested name.
        warnings.simplefilter("ignore")
        try:
            network: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
        except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
            if not options:
                raise
            raise ValueError(
                f"output_stride: expected 32 for {name}, which has no dilated variant in timm, got {output_stride};"
                " or use another network, such as resnet50"
            ) from error
    return network


def _paper_backbone(name: str, stage: int | None, source: str) -> Backbone:
    if stage not in (None, -1):
        raise ValueError(f"stage: expected None or -1 for {name}, which has one feature map, got {stage}")
    if source in ("hub", "embedded"):
        raise ValueError(f"weights: expected 'none' or a safetensors file for {name}, got {source!r}")
    network = PAPER_NETS[name]()
    if source != "none":
        load_weights(network, read_weights(source), source)
    # The authors subtract 128 from values in 0..255 (Appendix A) and do not scale.
    config = {
        "mean": [128 / 255] * 3,
        "std": [1 / 255] * 3,
        "interpolation": "bilinear",
        "input_size": (3, 224, 224),
    }
    return Backbone(name, network, None, config)


def _check_name(name: str) -> None:
    if name in PAPER_NETS:
        return
    import timm

    if not timm.is_model(name):
        hint = did_you_mean(name, [*PAPER_NETS, *timm.list_models()]) or "; see timm.list_models()"
        raise ValueError(f"backbone: expected a timm network or one of {', '.join(PAPER_NETS)}, got {name!r}{hint}")


def _check_stage(name: str, stage: int, count: int) -> int:
    if not -count <= stage < count:
        raise ValueError(f"stage: expected {-count} to {count - 1} for {name}, got {stage}")
    return stage % count


def _automatic(name: str) -> str:
    if name == EMBEDDED_BACKBONE:
        return "embedded"
    if name in PAPER_NETS:
        return "none"
    raise ValueError(
        f"weights: expected 'hub' (download from timm), 'none' (random initialization) or the path of a safetensors"
        f" file for {name}, got 'auto'; only {EMBEDDED_BACKBONE} has bundled weights"
    )
