"""Spatial pyramid pooling in PyTorch: networks that process each image at its own size."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppnet.backbones.backbone import Backbone, FeatureMap, create_backbone
    from sppnet.backbones.padded.ledger import PaddingError
    from sppnet.classify.model import Classifier, imagenet_classifier
    from sppnet.classify.network import ClassifierConfig
    from sppnet.classify.predict import Prediction
    from sppnet.data.resize import Resize
    from sppnet.detect.model import Detector, DetectorConfig
    from sppnet.errors import ImageError
    from sppnet.features.encoder import RegionEncoder
    from sppnet.inference.results import Detections
    from sppnet.layers.aspp import ASPP
    from sppnet.layers.ppm import PyramidPoolingModule
    from sppnet.layers.pyramid import RegionPyramidPool, SpatialPyramidPool
    from sppnet.layers.yolo import SPP, SPPF
    from sppnet.ops.pyramid import pyramid_pool
    from sppnet.ops.regions import region_pyramid_pool
    from sppnet.registry import load
    from sppnet.segment.model import Segmenter, SegmenterConfig

__version__ = "0.1.0"

__all__ = [
    "ASPP",
    "SPP",
    "SPPF",
    "Backbone",
    "Classifier",
    "ClassifierConfig",
    "Detections",
    "Detector",
    "DetectorConfig",
    "FeatureMap",
    "ImageError",
    "PaddingError",
    "Prediction",
    "PyramidPoolingModule",
    "RegionEncoder",
    "RegionPyramidPool",
    "Resize",
    "Segmenter",
    "SegmenterConfig",
    "SpatialPyramidPool",
    "create_backbone",
    "imagenet_classifier",
    "load",
    "pyramid_pool",
    "region_pyramid_pool",
]

# Public names are imported on first use, which keeps ``import sppnet`` fast.
_NAMES = {
    "sppnet.backbones.backbone": ("Backbone", "FeatureMap", "create_backbone"),
    "sppnet.backbones.padded.ledger": ("PaddingError",),
    "sppnet.classify.model": ("Classifier", "imagenet_classifier"),
    "sppnet.classify.network": ("ClassifierConfig",),
    "sppnet.classify.predict": ("Prediction",),
    "sppnet.data.resize": ("Resize",),
    "sppnet.detect.model": ("Detector", "DetectorConfig"),
    "sppnet.errors": ("ImageError",),
    "sppnet.features.encoder": ("RegionEncoder",),
    "sppnet.inference.results": ("Detections",),
    "sppnet.layers.aspp": ("ASPP",),
    "sppnet.layers.ppm": ("PyramidPoolingModule",),
    "sppnet.layers.pyramid": ("RegionPyramidPool", "SpatialPyramidPool"),
    "sppnet.layers.yolo": ("SPP", "SPPF"),
    "sppnet.ops.pyramid": ("pyramid_pool",),
    "sppnet.ops.regions": ("region_pyramid_pool",),
    "sppnet.registry": ("load",),
    "sppnet.segment.model": ("Segmenter", "SegmenterConfig"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
