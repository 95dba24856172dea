"""Any timm network, or one of the SPP-net paper's, as a maker of feature maps that know where they lie."""

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.backbones.geometry import Geometry, trace_geometry
from sppnet.backbones.padded.ledger import PaddingError
from sppnet.backbones.padded.mode import PaddedBatch
from sppnet.backbones.paper import PAPER_NETS
from sppnet.backbones.same_padding import integers_when_compiled
from sppnet.backbones.weights import (
    EMBEDDED_BACKBONE,
    embedded_weights,
    load_weights,
    read_weights,
)
from sppnet.ops.pyramid import Sizes


@dataclass(frozen=True)
class FeatureMap:
    """A batch of feature maps and where its cells lie.

    Attributes:
        data: (N, C, H, W).
        stride: (vertical, horizontal) input pixels from one cell to the next.
        offset: (vertical, horizontal) 0-based index of the input pixel under the first cell's centre, of an image as
            large as the batch; with TensorFlow's SAME padding a smaller one of a padded batch has one of its own,
            :meth:`sppnet.backbones.geometry.Geometry.offset`.
        sizes: valid (rows, columns) of each map of a padded batch; None where all of `data` is valid.
    """

    data: Tensor
    stride: tuple[int, int]
    offset: tuple[float, float]
    sizes: tuple[tuple[int, int], ...] | None = None


class Backbone(nn.Module):
    """A network cut off at one of its feature maps; made by :func:`create_backbone`.

    Attributes:
        name: timm's name, or one of the paper's networks.
        stage: index of the feature map, None for the last one.
        channels: channels of the map.
        geometry: strides, first centres and map sizes, see :class:`sppnet.backbones.geometry.Geometry`.
        mean, std: normalisation per RGB channel, for values in [0, 1].
        interpolation: how the images were resized that the weights were trained on.
        side: the image side that the weights were trained at, pixels.
        fine: index of a finer map that :meth:`both` gives too, or None.
        fine_channels, fine_geometry: of that map.
    """

    def __init__(
        self, name: str, network: nn.Module, stage: int | None, config: dict[str, Any], fine: int | None = None
    ) -> None:
        super().__init__()
        self.name = name
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
        """Feature maps of a normalised batch.

        Args:
            x: normalised images.
            sizes: valid (height, width) in pixels of each image of a padded batch; images lie at the top left. The
                valid cells of each map are those that the image gives alone, whatever the padding holds, see
                :class:`sppnet.backbones.padded.mode.PaddedBatch`.

        Raises:
            TypeError: `x` is not of a floating-point type.
            sppnet.PaddingError: a network with a layer for which that cannot be had; the layer is named.
            ValueError: an image too small to give a cell (the message has the smallest size), or `sizes` that
                are not those of the images.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"x: expected images (N, 3, H, W); got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected normalised images of a floating-point type; got {x.dtype}")
        rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        areas = None if rows is None else [(int(height), int(width)) for height, width in rows]
        if areas is not None:
            _check_areas(areas, x)
        for area in (x.shape[2:], *(() if areas is None else areas)):
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
            raise PaddingError(f"sizes: maps of {cells} cells came from images whose maps have {expected}")
        return FeatureMap(data, self.geometry.stride, offset, cells)

    def both(self, x: Float[Tensor, "n 3 h w"]) -> tuple[FeatureMap, FeatureMap]:
        """The map and the finer one of a normalised batch, from one pass; the backbone must have been made for it."""
        self._check_size(*x.shape[2:])
        fine, data = self._maps(self.network, x, (self.fine, self.stage))
        here, there = self.geometry, self.fine_geometry
        return (
            FeatureMap(data, here.stride, here.offset(*x.shape[2:])),
            FeatureMap(fine, there.stride, there.offset(*x.shape[2:])),
        )

    def compile_network(self) -> None:
        """Compile the network's pass for all sizes; the first calls take a minute, and on the CPU a C++ compiler."""
        integers_when_compiled()
        self._maps = torch.compile(self._maps, dynamic=True)  # type: ignore[method-assign]

    def _check_size(self, height: int, width: int) -> None:
        if min(self.geometry.map_size(height, width)) < 1:
            raise ValueError(
                f"x: an image of {height} x {width} pixels is too small for backbone {self.name};"
                f" the smallest is {' x '.join(map(str, self.geometry.smallest()))}"
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
            where = "the last map" if stage is None else f"stage {stage}"
            raise ValueError(f"backbone: {self.name} at {where} cannot be used: {error}") from error

    @torch.no_grad()
    def _count_channels(self, stage: int | None) -> int:
        height, width = self.geometry.smallest()
        probe = torch.zeros(1, 3, max(height, 64), max(width, 64))
        mode = self.network.training
        self.network.eval()
        (data,) = self._maps(self.network, probe, (stage,))
        self.network.train(mode)
        return data.shape[1]


def _check_areas(areas: Sequence[Sequence[int]], x: Tensor) -> None:
    if len(areas) != len(x):
        raise ValueError(f"sizes: expected one (height, width) for each of the {len(x)} images; got {len(areas)}")
    height, width = x.shape[2:]
    for index, area in enumerate(areas):
        if area[0] > height or area[1] > width:
            raise ValueError(f"sizes[{index}]: expected at most {height} x {width} pixels as in x; got {tuple(area)}")


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
        name: any timm network of convolutional form, or ``zf5``, ``convnet5``, ``overfeat5``, ``overfeat7``.
        stage: which of timm's feature maps, 0 the finest, -1 the coarsest; None for the map that the network's
            own classifier sees. The paper's networks have the last map only.
        weights: ``auto`` takes the ImageNet weights that come with the package for ``tf_efficientnet_lite0``
            and none for the paper's networks, and asks you to choose for any other; ``hub`` downloads timm's;
            None or ``none`` leaves the random initialisation; anything else is a safetensors file.
        output_stride: 8 or 16 for atrous convolutions instead of strides in the last stages; not every network of
            timm has them.
        fine_stride: also keep the last map with at most this stride, for :meth:`Backbone.both`; needs a `stage`.

    Raises:
        ValueError: unknown name (close matches are named), no such stage, a network whose maps have no fixed
            place on the image, or no atrous form, weights that do not fit.
    """
    source = "none" if weights is None else str(weights)
    _check_name(name)
    if source == "auto":
        source = _automatic(name)
    if name in PAPER_NETS:
        if output_stride != 32 or fine_stride is not None:
            raise ValueError(f"output_stride: {name} has one map and no atrous form; take a network of timm")
        return _paper_backbone(name, stage, source)
    network = _create_timm(name, pretrained=source == "hub", output_stride=output_stride)
    config = dict(network.pretrained_cfg)  # type: ignore[arg-type]
    if source == "embedded" and name != EMBEDDED_BACKBONE:
        raise ValueError(f"weights: only {EMBEDDED_BACKBONE} has embedded weights; got them asked for {name}")
    if source == "embedded":
        load_weights(network, embedded_weights(network.blocks), EMBEDDED_BACKBONE)  # type: ignore[arg-type]
    elif source not in ("hub", "none"):
        names = network.state_dict().keys()
        network.reset_classifier(0)  # type: ignore[operator]
        load_weights(network, read_weights(source), source, spare=names)
    network.reset_classifier(0)  # type: ignore[operator]
    fine = None
    if stage is not None:
        stage = _check_stage(name, stage, len(network.feature_info))  # type: ignore[arg-type]
        if fine_stride is not None:
            fine = _stage_of_stride(name, network, fine_stride)
        network.prune_intermediate_layers([stage], prune_head=True)  # type: ignore[operator]
    return Backbone(name, network, stage, config, fine)


def stage_of_stride(name: str, stride: int) -> int | None:
    """The last feature map of a network with at most this stride, for :func:`create_backbone`.

    Args:
        name: as for :func:`create_backbone`; the paper's networks have one map, which is None.
        stride: image pixels from one cell to the next, at least that of the first map.
    """
    _check_name(name)
    if name in PAPER_NETS:
        return None
    with torch.device("meta"):
        return _stage_of_stride(name, _create_timm(name, pretrained=False), stride)


def _stage_of_stride(name: str, network: nn.Module, stride: int) -> int:
    reductions = [one["reduction"] for one in network.feature_info]  # type: ignore[union-attr]
    fine = [index for index, reduction in enumerate(reductions) if reduction <= stride]
    if not fine:
        raise ValueError(f"stride: the finest map of {name} has stride {reductions[0]}; got {stride}")
    return fine[-1]


def _create_timm(name: str, pretrained: bool, output_stride: int = 32) -> nn.Module:
    import timm  # seconds to import, and the operators do without it

    atrous: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    with warnings.catch_warnings():
        # timm warns of its own renamed models; the name that was asked for is the one that is kept.
        warnings.simplefilter("ignore")
        try:
            network: nn.Module = timm.create_model(name, pretrained=pretrained, **atrous)
        except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
            if not atrous:
                raise
            raise ValueError(
                f"output_stride: timm has no form of {name} with output stride {output_stride}; take 32, or another"
                " network such as resnet50"
            ) from error
    return network


def _paper_backbone(name: str, stage: int | None, source: str) -> Backbone:
    if stage not in (None, -1):
        raise ValueError(f"stage: {name} has the last map only (None); got {stage}")
    if source in ("hub", "embedded"):
        raise ValueError(f"weights: there are no {source} weights for {name}; give 'none' or a safetensors file")
    network = PAPER_NETS[name]()
    if source != "none":
        load_weights(network, read_weights(source), source)
    # The authors subtract 128 from values in 0..255 (Appendix A) and scale nothing.
    config = {
        "mean": [128 / 255] * 3,
        "std": [1 / 255] * 3,
        "interpolation": "bilinear",
        "input_size": (3, 224, 224),
    }
    return Backbone(name, network, None, config)


def _check_name(name: str) -> None:
    import timm

    if name in PAPER_NETS or timm.is_model(name):
        return
    close = difflib.get_close_matches(name, [*PAPER_NETS, *timm.list_models()], n=4, cutoff=0.5)
    hint = f"; close: {', '.join(close)}" if close else "; timm.list_models() has them all"
    raise ValueError(f"backbone: no network is called {name!r}{hint}")


def _check_stage(name: str, stage: int, count: int) -> int:
    if not -count <= stage < count:
        raise ValueError(f"stage: {name} has stages 0..{count - 1} (or -1 for the last of them); got {stage}")
    return stage % count


def _automatic(name: str) -> str:
    if name == EMBEDDED_BACKBONE:
        return "embedded"
    if name in PAPER_NETS:
        return "none"
    raise ValueError(
        f"weights: no weights for {name} come with this package; choose 'hub' (downloads timm's), 'none' (random"
        " initialisation) or the path of a safetensors file"
    )
