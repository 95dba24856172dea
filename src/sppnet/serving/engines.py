"""What runs a network behind the server: torch as it is, torch compiled, or onnxruntime."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.backbones.backbone import Backbone
from sppnet.backbones.padded.ledger import PaddingError
from sppnet.classify.model import Classifier
from sppnet.classify.predict import probabilities
from sppnet.data.images import to_tensor

Engine = Literal["eager", "compiled", "onnx"]
Probabilities = Callable[[Sequence[Image.Image]], list[Float[Tensor, " classes"]]]

_EXPORT_SIZES = 10
_SHRINK_SECONDS = 5.0


def torch_probabilities(model: Classifier, padded: bool = False) -> Probabilities:
    """Images of any sizes in, probabilities of their classes out.

    Args:
        model: in evaluation mode, compiled or not.
        padded: take all images in one padded pass, equal to one by one but for rounding; else those of equal size
            share passes, as in :func:`sppnet.classify.predict.predict_images`.
    """

    @torch.inference_mode()
    def answer(images: Sequence[Image.Image]) -> list[Tensor]:
        sizes = [(image.height, image.width) for image in images]
        if not padded or len(set(sizes)) == 1:
            return probabilities(model, images)
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        x = torch.zeros(len(images), 3, height, width)
        for place, image in zip(x, images, strict=True):
            place[:, : image.height, : image.width] = to_tensor(image, model.backbone.mean, model.backbone.std)
        x = x.to(model.device, model.dtype, memory_format=torch.channels_last)
        return list(model(x, sizes).softmax(1).cpu())

    return answer


def onnx_probabilities(model: Classifier, threads: int) -> Probabilities:
    """As :func:`torch_probabilities`, for images of one size, in onnxruntime on the CPU.

    The model is exported anew and checked beside torch, so that the file is always that of the model.

    Raises:
        ModuleNotFoundError: the extra `export` is not installed.
        sppnet.export.models.ExportError: the model cannot be written as ONNX.
    """
    from sppnet.export.models import export_classifier
    from sppnet.export.verify import open_session

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_classifier(model, file, sizes=_EXPORT_SIZES)
        session, _ = open_session(file, threads)

    import onnxruntime  # type: ignore[import-untyped]  # which the export has asked for

    mean, std = model.backbone.mean, model.backbone.std
    # Else onnxruntime keeps for ever what the largest photographs took.
    shrinking, shrunk = onnxruntime.RunOptions(), time.monotonic()
    shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def answer(images: Sequence[Image.Image]) -> list[Tensor]:
        nonlocal shrunk
        now, options = time.monotonic(), None
        if now - shrunk > _SHRINK_SECONDS:
            shrunk, options = now, shrinking
        x = torch.stack([to_tensor(one, mean, std) for one in images]).numpy()
        (logits,) = session.run(None, {"image": x}, options)
        return list(torch.from_numpy(logits).softmax(1))

    return answer


def takes_padding(backbone: Backbone) -> bool:
    """Whether images of different sizes may share a padded pass of the network."""
    least = max(backbone.geometry.smallest())
    weight = next(backbone.parameters())
    x = torch.zeros(2, 3, least + 64, least + 64, device=weight.device, dtype=weight.dtype)
    try:
        with torch.inference_mode():
            backbone(x, [(least + 64, least + 64), (least + 32, least + 17)])
    except PaddingError:
        return False
    return True
