"""Small untrained classifiers."""

from typing import Any

import torch

from sppnet import Classifier, ClassifierConfig, create_backbone


def build_classifier(
    backbone: str = "test_resnet", classes: tuple[str, ...] = ("ash", "birch", "cedar"), **options: Any
) -> Classifier:
    """Build a classifier in evaluation mode, with the same weights on every call."""
    torch.manual_seed(0)
    config = ClassifierConfig(classes, backbone, **options)
    return Classifier(config, create_backbone(backbone, config.stage, None)).eval()
