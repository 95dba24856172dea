"""Small untrained classifiers."""

from typing import Any

import torch

from sppnet import Classifier, ClassifierConfig
from sppnet.classify.model import create_classifier


def build_classifier(
    backbone: str = "test_resnet", classes: tuple[str, ...] = ("ash", "birch", "cedar"), **options: Any
) -> Classifier:
    """Build a classifier in evaluation mode, with the same weights on every call."""
    torch.manual_seed(0)
    return create_classifier(ClassifierConfig(classes, backbone, **options), None).eval()
