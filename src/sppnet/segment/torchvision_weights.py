"""Conversion of torchvision's DeepLab v3 weights."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from sppnet.backbones.backbone import create_backbone
from sppnet.backbones.weights import load_weights
from sppnet.data.formats.class_tables import VOC
from sppnet.segment.model import Segmenter
from sppnet.segment.network import SegmenterConfig

# Name prefixes of tensors in torchvision and here.
_PREFIXES = {
    "backbone.": "backbone.network.",
    "classifier.0.convs.4.1.": "head.context.image.0.",
    "classifier.0.convs.4.2.": "head.context.image.1.",
    "classifier.0.convs.": "head.context.branches.",
    "classifier.0.project.": "head.context.project.",
    "classifier.1.": "head.classify.0.0.",
    "classifier.2.": "head.classify.0.1.",
    "classifier.4.": "head.classify.1.",
}
_DEPTHS = {6: "resnet50", 23: "resnet101"}  # by the number of blocks in the third stage


def from_torchvision(state: Mapping[str, Tensor], classes: Sequence[str] | None = None) -> Segmenter:
    """Create a segmenter with the weights of torchvision's ``deeplabv3_resnet50`` or ``deeplabv3_resnet101``.

    The segmenter has torchvision's architecture and gives the same logits: output stride 8, rates 12, 24 and 36, a 3x3
    block before the classifier, and logits resized by the ratio of the sizes. The auxiliary classifier is dropped.
    :func:`sppnet.training.run.save` saves the segmenter as a run folder.

    Args:
        state: ``state_dict()`` of the torchvision model.
        classes: class names, in logit order; None: those of VOC, if there are 21 classes.

    Raises:
        ValueError: `state` is of another network, or the number of class names is wrong.
    """
    blocks = {name.split(".")[2] for name in state if name.startswith("backbone.layer3.")}
    last = state.get("classifier.4.weight")
    if len(blocks) not in _DEPTHS or last is None:
        raise ValueError(
            "state: expected the tensors of torchvision's deeplabv3_resnet50 or deeplabv3_resnet101 (backbone.layer3.*,"
            f" classifier.4.weight), got {len(state)} tensors, {len(blocks)} blocks in the third stage"
        )
    names = tuple(VOC if classes is None and len(last) == len(VOC) else classes or ())
    if len(names) != len(last):
        raise ValueError(f"classes: expected {len(last)} names, one per class of the network, got {len(names)}")
    config = SegmenterConfig(
        classes=names,
        backbone=_DEPTHS[len(blocks)],
        head="deeplabv3",
        output_stride=8,
        rates=(12, 24, 36),
        separable=False,
        extra_conv=True,
        dropout=0.5,
        upsample="resize",
    )
    model = Segmenter(config, create_backbone(config.backbone, -1, None, output_stride=8))
    renamed = {_renamed(name): tensor for name, tensor in state.items() if not name.startswith("aux_classifier.")}
    load_weights(model, renamed, "torchvision")
    return model.eval()


def _renamed(name: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return _PREFIXES.get(prefix, "") + name.removeprefix(prefix)
