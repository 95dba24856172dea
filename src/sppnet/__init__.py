"""Spatial pyramid pooling in PyTorch: networks that process each image at its own size."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppnet.backbones.backbone import Backbone, FeatureMap, create_backbone
    from sppnet.backbones.padded.ledger import PaddingError
    from sppnet.classify.evaluate import ClassificationReport, evaluate_classifier
    from sppnet.classify.model import Classifier, create_classifier, imagenet_classifier
    from sppnet.classify.network import ClassifierConfig
    from sppnet.classify.options import ClassifyOptions
    from sppnet.classify.predict import ClassificationResult
    from sppnet.classify.train import train_classifier
    from sppnet.data.loader import SizeBatchSampler, collate_images, mixed_size_loader
    from sppnet.data.resize import Resize
    from sppnet.detect.evaluate import DetectionReport, evaluate_detector
    from sppnet.detect.model import Detector, DetectorConfig, create_detector
    from sppnet.detect.options import DetectOptions
    from sppnet.detect.predict import DetectionResult
    from sppnet.detect.train import train_detector
    from sppnet.detect.two_stage.model import TwoStageDetector
    from sppnet.detect.two_stage.network import TwoStageConfig
    from sppnet.detect.two_stage.options import TwoStageOptions
    from sppnet.detect.two_stage.tiles import Tiling
    from sppnet.errors import ImageError
    from sppnet.features.encoder import RegionEncoder, RegionFeatures, create_region_encoder
    from sppnet.features.options import RegionEncoderConfig
    from sppnet.inference.results import Detections, Failure, Result
    from sppnet.layers.aspp import ASPP
    from sppnet.layers.ppm import PyramidPoolingModule
    from sppnet.layers.pyramid import RegionPyramidPool, SpatialPyramidPool
    from sppnet.layers.yolo import SPP, SPPF
    from sppnet.ops.pyramid import pyramid_pool
    from sppnet.ops.regions import region_pyramid_pool
    from sppnet.progress import on_progress
    from sppnet.registry import load
    from sppnet.segment.evaluate import SegmentationReport, evaluate_segmenter
    from sppnet.segment.model import Segmenter, create_segmenter
    from sppnet.segment.network import SegmenterConfig
    from sppnet.segment.options import SegmentOptions, View
    from sppnet.segment.predict import SegmentationResult
    from sppnet.segment.train import train_segmenter
    from sppnet.training.run import TrainingResult, save

__version__ = "0.1.0"

__all__ = [
    "ASPP",
    "SPP",
    "SPPF",
    "Backbone",
    "ClassificationReport",
    "ClassificationResult",
    "Classifier",
    "ClassifierConfig",
    "ClassifyOptions",
    "DetectOptions",
    "DetectionReport",
    "DetectionResult",
    "Detections",
    "Detector",
    "DetectorConfig",
    "Failure",
    "FeatureMap",
    "ImageError",
    "PaddingError",
    "PyramidPoolingModule",
    "RegionEncoder",
    "RegionEncoderConfig",
    "RegionFeatures",
    "RegionPyramidPool",
    "Resize",
    "Result",
    "SegmentOptions",
    "SegmentationReport",
    "SegmentationResult",
    "Segmenter",
    "SegmenterConfig",
    "SizeBatchSampler",
    "SpatialPyramidPool",
    "Tiling",
    "TrainingResult",
    "TwoStageConfig",
    "TwoStageDetector",
    "TwoStageOptions",
    "View",
    "collate_images",
    "create_backbone",
    "create_classifier",
    "create_detector",
    "create_region_encoder",
    "create_segmenter",
    "evaluate_classifier",
    "evaluate_detector",
    "evaluate_segmenter",
    "imagenet_classifier",
    "load",
    "mixed_size_loader",
    "on_progress",
    "pyramid_pool",
    "region_pyramid_pool",
    "save",
    "train_classifier",
    "train_detector",
    "train_segmenter",
]

# Public names are imported on first use, which keeps ``import sppnet`` fast.
_MODULES = {
    name: f"sppnet.{module}"
    for module, names in {
        "backbones.backbone": "Backbone FeatureMap create_backbone",
        "backbones.padded.ledger": "PaddingError",
        "classify.evaluate": "ClassificationReport evaluate_classifier",
        "classify.model": "Classifier create_classifier imagenet_classifier",
        "classify.network": "ClassifierConfig",
        "classify.options": "ClassifyOptions",
        "classify.predict": "ClassificationResult",
        "classify.train": "train_classifier",
        "data.loader": "SizeBatchSampler collate_images mixed_size_loader",
        "data.resize": "Resize",
        "detect.evaluate": "DetectionReport evaluate_detector",
        "detect.model": "Detector DetectorConfig create_detector",
        "detect.options": "DetectOptions",
        "detect.predict": "DetectionResult",
        "detect.train": "train_detector",
        "detect.two_stage.model": "TwoStageDetector",
        "detect.two_stage.network": "TwoStageConfig",
        "detect.two_stage.options": "TwoStageOptions",
        "detect.two_stage.tiles": "Tiling",
        "errors": "ImageError",
        "features.encoder": "RegionEncoder RegionFeatures create_region_encoder",
        "features.options": "RegionEncoderConfig",
        "inference.results": "Detections Failure Result",
        "layers.aspp": "ASPP",
        "layers.ppm": "PyramidPoolingModule",
        "layers.pyramid": "RegionPyramidPool SpatialPyramidPool",
        "layers.yolo": "SPP SPPF",
        "ops.pyramid": "pyramid_pool",
        "ops.regions": "region_pyramid_pool",
        "progress": "on_progress",
        "registry": "load",
        "segment.evaluate": "SegmentationReport evaluate_segmenter",
        "segment.model": "Segmenter create_segmenter",
        "segment.network": "SegmenterConfig",
        "segment.options": "SegmentOptions View",
        "segment.predict": "SegmentationResult",
        "segment.train": "train_segmenter",
        "training.run": "TrainingResult save",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        from sppnet.errors import missing_extra

        raise missing_extra(error, f"the names of {_MODULES[name]}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
