"""Classifier runtimes of the server: eager PyTorch, torch.compile and ONNX Runtime."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sppnet.backbones.backbone import Backbone
from sppnet.backbones.padded.ledger import PaddingError
from sppnet.classify.model import Classifier
from sppnet.classify.predict import probabilities
from sppnet.data.images import to_tensor
from sppnet.errors import import_optional
from sppnet.export.models import export_classifier
from sppnet.export.verify import open_session

Probabilities = Callable[[Sequence[Image.Image]], list[Float[Tensor, " classes"]]]

_EXPORT_SIZES = 10
_SHRINK_SECONDS = 5.0


def torch_probabilities(model: Classifier, padded: bool = False) -> Probabilities:
    """Return a function that computes class probabilities for images of any sizes with PyTorch.

    Args:
        model: classifier in evaluation mode, compiled or not.
        padded: whether to process all images in one padded pass, with the results of single images up to rounding;
            otherwise only equal sizes share a pass, as in :func:`sppnet.classify.predict.predict_images`.
    """

    @torch.inference_mode()
    def answer(images: Sequence[Image.Image]) -> list[Tensor]:
        sizes = [(image.height, image.width) for image in images]
        if not padded or len(set(sizes)) == 1:
            return probabilities(model, images)
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        x = torch.zeros(len(images), 3, height, width)
        for row, image in zip(x, images, strict=True):
            row[:, : image.height, : image.width] = to_tensor(image, model.backbone.mean, model.backbone.std)
        x = x.to(model.device, model.dtype, memory_format=torch.channels_last)
        return list(model(x, sizes).softmax(1).cpu())

    return answer


def onnx_probabilities(model: Classifier, threads: int) -> Probabilities:
    """Return a function that computes class probabilities for images of one size with ONNX Runtime, on the CPU.

    The model is exported to a temporary file and compared with PyTorch.

    Raises:
        ModuleNotFoundError: the extra `export` is not installed.
        sppnet.export.models.ExportError: the model cannot be exported to ONNX.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_classifier(model, file, num_sizes=_EXPORT_SIZES)
        session, _ = open_session(file, threads)

    mean, std = model.backbone.mean, model.backbone.std
    # Without shrinking, ONNX Runtime keeps the memory of the largest photographs.
    shrinking, shrunk = import_optional("onnxruntime", "ONNX models").RunOptions(), time.monotonic()
    shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def answer(images: Sequence[Image.Image]) -> list[Tensor]:
        nonlocal shrunk
        now, options = time.monotonic(), None
        if now - shrunk > _SHRINK_SECONDS:
            shrunk, options = now, shrinking
        x = torch.stack([to_tensor(image, mean, std) for image in images]).numpy()
        (logits,) = session.run(None, {"image": x}, options)
        return list(torch.from_numpy(logits).softmax(1))

    return answer


def takes_padding(backbone: Backbone) -> bool:
    """Return whether the network supports padded batches of different image sizes."""
    side = max(backbone.geometry.smallest()) + 64
    weight = next(backbone.parameters())
    x = torch.zeros(2, 3, side, side, device=weight.device, dtype=weight.dtype)
    try:
        with torch.inference_mode():
            backbone(x, [(side, side), (side - 32, side - 47)])
    except PaddingError:
        return False
    return True
