"""Spatial pyramid pooling: networks that take every image at its own size."""

from sppnet.backbones import Backbone, FeatureMap, create_backbone
from sppnet.boxes import Detections
from sppnet.classify import Classifier, ClassifierConfig, Prediction, imagenet_classifier
from sppnet.data.images import ImageError
from sppnet.data.resize import Resize
from sppnet.detect import Detector, DetectorConfig
from sppnet.encoder import RegionEncoder
from sppnet.layers import ASPP, SPP, SPPF, PyramidPoolingModule, RegionPyramidPool, SpatialPyramidPool
from sppnet.ops import pyramid_pool, region_pyramid_pool
from sppnet.padded.ledger import PaddingError
from sppnet.runs import load
from sppnet.segment import Segmenter, SegmenterConfig

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
