"""Server tasks for each kind of model, from the bytes of a photograph to the content of the response."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from sppnet.classify.model import Classifier
from sppnet.classify.predict import prediction_of, read_image, size_policy, too_small
from sppnet.data.images import load_image
from sppnet.data.resize import Resize
from sppnet.detect.model import AnyDetector, Detector
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.memory import MemoryLimitError
from sppnet.ops.levels import parse_levels
from sppnet.segment.memory import whole_fits
from sppnet.segment.model import Segmenter
from sppnet.segment.options import View
from sppnet.segment.pictures import labels_picture, palette
from sppnet.segment.predict import SegmentationResult
from sppnet.segment.views import segment_image
from sppnet.serving.explain import class_index, explain_box, explain_image, explain_taps
from sppnet.serving.limits import Limits, Refusal
from sppnet.serving.runtimes import Probabilities
from sppnet.serving.uploads import Answer, Upload, answer_uploads, header_size, parse_box, parse_boxes

_JSON_NUMBERS = 2_000_000  # per response with vectors


class ClassifyTask:
    """Classification of photographs."""

    kind: ClassVar[str] = "classify"

    def __init__(self, model: Classifier, limits: Limits, run: Probabilities) -> None:
        self.model, self.limits, self._run = model, limits, run

    def describe(self) -> dict[str, Any]:
        """Return the task's fields of `/v1/model`."""
        config, side = self.model.config, self.model.backbone.side
        policies = [str(Resize.parse(name, side)) for name in ("native", "shorter-side", "square-min", "warp")]
        return {
            "classes": config.classes,
            "resize": str(self.model.resize),
            "resizes": list(dict.fromkeys([str(self.model.resize), *policies, f"center-crop:{side}"])),
            "trained_sides": config.trained_sides,
            "levels": parse_levels(config.levels),
            "head": config.head,
        } | _backbone_of(self.model)

    def predict(self, data: bytes, resize: str | None = None) -> Upload:
        """Prepare the classification of a photograph."""
        policy = self._policy(resize)
        return Upload(data, self._network_size(data, policy), str(policy), partial(self._predict, policy))

    def explain(self, data: bytes, resize: str | None = None, label: str | None = None) -> Upload:
        """Prepare the explanation of a class, by default the predicted one."""
        policy = self._policy(resize)
        try:
            _ = label is None or class_index(self.model.config.classes, label)
        except ValueError as error:
            raise Refusal("bad_option", str(error)) from error
        return Upload(data, self._network_size(data, policy), None, partial(self._explain, policy, label))

    def _policy(self, resize: str | None) -> Resize:
        try:
            return size_policy(self.model, resize or None)
        except ValueError as error:
            raise Refusal("bad_option", str(error)) from error

    def _network_size(self, data: bytes, policy: Resize) -> tuple[int, int]:
        size = policy.target_size(*header_size(data, self.limits))
        backbone = self.model.backbone
        limit = max(self.model.config.max_pixels, backbone.side**2)
        if policy != self.model.resize and size[0] * size[1] > limit:
            raise Refusal(
                "bad_option",
                f"resize: expected at most {limit} pixels, such as warp:{math.isqrt(limit)}, got {size[0]} x {size[1]}"
                f" for {policy}",
            )
        if reason := too_small(backbone, size):
            raise Refusal("too_small", f"image: {reason}")
        return size

    def _predict(self, policy: Resize, batch: Sequence[Upload]) -> list[Answer]:
        loaded = [read_image(self.model, upload.data, policy) for upload in batch]
        rows = zip(batch, loaded, self._run([item.image for item in loaded]), strict=True)
        return [prediction_of(self.model, upload.source, item, output).to_dict() for upload, item, output in rows]

    def _explain(self, policy: Resize, label: str | None, batch: Sequence[Upload]) -> list[Answer]:
        return [explain_image(self.model, load_image(upload.data), policy, label) for upload in batch]


class DetectTask:
    """Object detection; photographs are processed one at a time.

    Args:
        model: detector.
        limits: request limits.
        proposals: proposal source of a window-based detector; None for that of the model.
    """

    kind: ClassVar[str] = "detect"

    def __init__(self, model: AnyDetector, limits: Limits, proposals: str | None = None) -> None:
        self.model, self.limits = model, limits
        self._options: dict[str, Any] = {} if proposals is None else {"proposals": proposals}

    def describe(self) -> dict[str, Any]:
        """Return the task's fields of `/v1/model`."""
        config = self.model.config
        return {
            "classes": config.classes,
            "levels": parse_levels(config.levels),
            "shown_score": config.min_score,
            "score_range": (0.0, 1.0) if config.probabilities else (-1.5, 3.0),
        } | _backbone_of(self.model.encoder if isinstance(self.model, Detector) else self.model)

    def predict(self, data: bytes, min_score: float | None = None) -> Upload:
        """Prepare the detection of objects in a photograph."""
        return Upload(data, header_size(data, self.limits), None, partial(self._predict, min_score))

    def explain(self, data: bytes, box: str) -> Upload:
        """Prepare the explanation of a box: the cells that it pools."""
        encoder = self.model.encoder if isinstance(self.model, Detector) else None
        if not isinstance(encoder, RegionEncoder):
            method = self.model.config.method
            raise Refusal("bad_option", f"box: expected a detector of the method spp or fast, got {method}")
        return _check_box(encoder, data, box, self.limits)

    def _predict(self, min_score: float | None, batch: Sequence[Upload]) -> list[Answer]:
        images = [upload.data for upload in batch]
        return _with_sources(self.model.predict(images, min_score=min_score, **self._options), batch)


class SegmentTask:
    """Semantic segmentation of photographs."""

    kind: ClassVar[str] = "segment"

    def __init__(self, model: Segmenter, limits: Limits, memory: int) -> None:
        self.model, self.limits, self._memory, self._view = model, limits, memory, View(memory=memory)

    def describe(self) -> dict[str, Any]:
        """Return the task's fields of `/v1/model`."""
        config = self.model.config
        colours = palette(config.colours, len(config.classes)).tolist()
        rates = getattr(self.model.head.context, "rates", ())
        return {"classes": config.classes, "colours": colours, "rates": rates} | _backbone_of(self.model)

    def predict(self, data: bytes) -> Upload:
        """Prepare the segmentation of a photograph."""
        return Upload(data, header_size(data, self.limits), "predict", self._predict)

    def explain(self, data: bytes) -> Upload:
        """Prepare the explanation of atrous rates: their live taps on the photograph's feature map."""
        if not getattr(self.model.head.context, "rates", ()):
            raise Refusal("bad_option", "explain: expected a segmenter with ASPP, got one without")
        return Upload(data, header_size(data, self.limits), None, self._explain)

    def _predict(self, batch: Sequence[Upload]) -> list[Answer]:
        images = [load_image(upload.data) for upload in batch]
        height, width = images[0].height, images[0].width
        if len(images) > 1 and whole_fits(self.model, len(images) * height, width, self._memory):
            with torch.inference_mode():
                logits = self.model(torch.cat([self.model.pixels(image) for image in images]))
            labels = [image_logits.float().softmax(0).cpu().argmax(0) for image_logits in logits]
        else:
            labels = [self._label(image, upload) for image, upload in zip(images, batch, strict=True)]
        return [self._answer(upload, image_labels) for upload, image_labels in zip(batch, labels, strict=True)]

    def _label(self, image: Image.Image, upload: Upload) -> Tensor:
        try:
            return segment_image(self.model, image, self._view, upload.go_on)
        except MemoryLimitError as error:
            raise Refusal("too_many_pixels", str(error)) from error

    def _answer(self, upload: Upload, labels: Tensor) -> dict[str, Any]:
        config = self.model.config
        result = SegmentationResult(upload.source, upload.size, labels.numpy(), config.classes, config.colours)
        file = io.BytesIO()
        labels_picture(result.labels, config.colours).save(file, "PNG")
        return result.to_dict() | {"mask": base64.b64encode(file.getvalue()).decode()}

    def _explain(self, batch: Sequence[Upload]) -> list[Answer]:
        return [explain_taps(self.model, upload.size) for upload in batch]


class RegionTask:
    """Feature vectors of boxes."""

    kind: ClassVar[str] = "features"

    def __init__(self, encoder: RegionEncoder, limits: Limits) -> None:
        self.model, self.limits = encoder, limits

    def describe(self) -> dict[str, Any]:
        """Return the task's fields of `/v1/model`."""
        return {"levels": parse_levels(self.model.levels), "length": self.model.length} | _backbone_of(self.model)

    def features(self, data: bytes, boxes: str, output: str = "json") -> Upload:
        """Prepare the vectors of boxes, as JSON or as a safetensors file."""
        size = header_size(data, self.limits)
        parsed = parse_boxes(boxes, size, self.limits)
        if output == "json" and len(parsed) * self.model.length > _JSON_NUMBERS:
            raise Refusal(
                "too_many_boxes",
                f"boxes: expected at most {_JSON_NUMBERS // self.model.length} for JSON vectors of length"
                f" {self.model.length}, got {len(parsed)}; use output=safetensors",
            )
        return Upload(data, size, None, partial(self._features, parsed, output))

    def explain(self, data: bytes, box: str) -> Upload:
        """Prepare the explanation of a box: the cells that it pools."""
        return _check_box(self.model, data, box, self.limits)

    def _features(self, boxes: Tensor, output: str, batch: Sequence[Upload]) -> list[Answer]:
        results = self.model.predict([upload.data for upload in batch], [boxes] * len(batch))
        if output == "safetensors":
            return [save({"vectors": result.vectors.half().cpu()}) for result in results]
        return _with_sources(results, batch)


Task = ClassifyTask | DetectTask | SegmentTask | RegionTask


def warm_up(task: Task) -> None:
    """Run the task on a few noise images, so that requests do not wait for one-time work such as compilation.

    torch.compile needs even and odd sizes, and batches of one and two, to create its graphs. Very small maps,
    for which torch uses other convolution kernels, are skipped: their graphs would take a minute to compile.
    """
    scale = min(1.0, (task.limits.max_image_pixels / (640 * 480)) ** 0.5)
    for size in ((int(640 * scale), int(480 * scale)), (int(511 * scale), int(333 * scale))):
        file = io.BytesIO()
        Image.effect_noise(size, 60).save(file, "PNG")
        data = file.getvalue()
        upload = task.features(data, "[[0, 0, 90, 90]]") if isinstance(task, RegionTask) else task.predict(data)
        answer_uploads([upload])
        if upload.key is not None:
            answer_uploads([upload, upload])


def _with_sources(results: Sequence[Any], batch: Sequence[Upload]) -> list[Answer]:
    return [replace(result, source=upload.source).to_dict() for result, upload in zip(results, batch, strict=True)]


def _check_box(encoder: RegionEncoder, data: bytes, box: str, limits: Limits) -> Upload:
    size = header_size(data, limits)
    parsed = parse_box(box, size)
    return Upload(data, size, None, lambda batch: [explain_box(encoder, size, parsed) for _ in batch])


def _backbone_of(model: Any) -> dict[str, Any]:
    return {"backbone": model.backbone.name, "stride": model.backbone.geometry.stride}
