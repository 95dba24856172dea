"""Server tasks for each kind of model, from the bytes of a photograph to the content of the response."""

import base64
import io
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from sppnet.classify.model import Classifier
from sppnet.classify.predict import prediction_of, read_image, size_policy
from sppnet.data.images import load_image
from sppnet.data.resize import Resize
from sppnet.detect.model import Detector, list_objects
from sppnet.detect.proposals import propose
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.memory import MemoryLimitError
from sppnet.inference.results import filter_by_score
from sppnet.ops.bins import parse_levels
from sppnet.segment.memory import whole_fits
from sppnet.segment.model import Segmenter
from sppnet.segment.pictures import labels_picture, palette
from sppnet.segment.views import View, segment_image
from sppnet.serving.engines import Probabilities
from sppnet.serving.explain import class_index, explain_box, explain_image, explain_taps
from sppnet.serving.limits import Limits, Refusal
from sppnet.serving.uploads import Answer, Upload, answer_uploads, header_size, parse_box, parse_boxes

Kind = Literal["classify", "detect", "segment", "regions"]

_JSON_NUMBERS = 2_000_000  # per response with vectors


class ClassifyTask:
    """Classification of photographs."""

    name = "classify"

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
        geometry = backbone.geometry
        if min(geometry.map_size(*size)) < 1:
            smallest = " x ".join(map(str, geometry.smallest()))
            raise Refusal(
                "too_small", f"image: expected a network input of at least {smallest}, got {size[0]} x {size[1]}"
            )
        return size

    def _predict(self, policy: Resize, batch: Sequence[Upload]) -> list[Answer]:
        loaded = [read_image(self.model, upload.data, policy) for upload in batch]
        answers: list[Answer] = []
        for item, probabilities in zip(loaded, self._run([item.image for item in loaded]), strict=True):
            prediction = prediction_of(self.model, "", item, probabilities)
            top = [{"label": label, "score": score} for label, score in prediction.top]
            sizes = {"size": prediction.size, "network_size": prediction.network_size, "resize": str(policy)}
            answers.append(
                {"task": self.name, "label": prediction.label, "score": prediction.score, "top": top} | sizes
            )
        return answers

    def _explain(self, policy: Resize, label: str | None, batch: Sequence[Upload]) -> list[Answer]:
        return [explain_image(self.model, load_image(upload.data), policy, label) for upload in batch]


class DetectTask:
    """Object detection; photographs are processed one at a time."""

    name = "detect"

    def __init__(self, model: Detector, limits: Limits, shown: float) -> None:
        self.model, self.limits, self._shown = model, limits, shown

    def describe(self) -> dict[str, Any]:
        """Return the task's fields of `/v1/model`."""
        config = self.model.config
        return {
            "classes": config.classes,
            "levels": parse_levels(config.levels),
            "shown_score": self._shown,
            "score_range": (0.0, 1.0) if config.scorer == "softmax" else (-1.5, 3.0),
        } | _backbone_of(self.model.encoder)

    def predict(self, data: bytes, min_score: float | None = None) -> Upload:
        """Prepare the detection of objects in a photograph."""
        threshold = self._shown if min_score is None else min_score
        return Upload(data, header_size(data, self.limits), None, partial(self._predict, threshold))

    def explain(self, data: bytes, box: str) -> Upload:
        """Prepare the explanation of a box: the cells that it pools."""
        encoder = self.model.encoder
        if not isinstance(encoder, RegionEncoder):
            raise Refusal("bad_option", "box: expected a detector that pools boxes on a feature map, got R-CNN")
        return _check_box(encoder, data, box, self.limits, self.name)

    def _predict(self, threshold: float, batch: Sequence[Upload]) -> list[Answer]:
        answers: list[Answer] = []
        config = self.model.config
        for upload in batch:
            image = load_image(upload.data)
            windows = propose(image, config.proposals, max_windows=config.windows, seconds=config.proposal_seconds)
            objects = list_objects(filter_by_score(self.model.detect(image, windows), threshold), config.classes)
            sizes = {"size": (image.height, image.width), "windows": len(windows)}
            answers.append({"task": self.name, "objects": objects} | sizes)
        return answers


class SegmentTask:
    """Semantic segmentation of photographs."""

    name = "segment"

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
            labels = [image_logits.softmax(0).cpu().argmax(0) for image_logits in logits]
        else:
            labels = [self._label(image, upload) for image, upload in zip(images, batch, strict=True)]
        return [self._answer(image_labels) for image_labels in labels]

    def _label(self, image: Image.Image, upload: Upload) -> Tensor:
        try:
            return segment_image(self.model, image, self._view, upload.go_on)
        except MemoryLimitError as error:
            raise Refusal("too_many_pixels", str(error)) from error

    def _answer(self, labels: Tensor) -> dict[str, Any]:
        config = self.model.config
        counts = labels.flatten().bincount(minlength=len(config.classes)).tolist()
        shares = [
            {"label": name, "share": count / labels.numel()}
            for name, count in zip(config.classes, counts, strict=True)
            if count
        ]
        file = io.BytesIO()
        labels_picture(labels.numpy(), config.colours).save(file, "PNG")
        mask = base64.b64encode(file.getvalue()).decode()
        return {"task": self.name, "size": tuple(labels.shape), "classes": shares, "mask": mask}

    def _explain(self, batch: Sequence[Upload]) -> list[Answer]:
        return [explain_taps(self.model, upload.size) for upload in batch]


class RegionTask:
    """Feature vectors of boxes."""

    name = "regions"

    def __init__(self, encoder: RegionEncoder, limits: Limits) -> None:
        self.model, self.limits = encoder, limits

    def describe(self) -> dict[str, Any]:
        """Return the task's fields of `/v1/model`."""
        return {"levels": parse_levels(self.model.levels), "length": self.model.length} | _backbone_of(self.model)

    def features(self, data: bytes, boxes: str, output: str = "json") -> Upload:
        """Prepare the vectors of boxes, as JSON or as a safetensors file."""
        size = header_size(data, self.limits)
        parsed = parse_boxes(boxes, size, self.limits)
        if output not in ("json", "safetensors"):
            raise Refusal("bad_option", f"output: expected json or safetensors, got {output!r}")
        if output == "json" and len(parsed) * self.model.length > _JSON_NUMBERS:
            raise Refusal(
                "too_many_boxes",
                f"boxes: expected at most {_JSON_NUMBERS // self.model.length} for JSON vectors of length"
                f" {self.model.length}, got {len(parsed)}; use output=safetensors",
            )
        return Upload(data, size, None, partial(self._features, parsed, output))

    def explain(self, data: bytes, box: str) -> Upload:
        """Prepare the explanation of a box: the cells that it pools."""
        return _check_box(self.model, data, box, self.limits, self.name)

    def _features(self, boxes: Tensor, output: str, batch: Sequence[Upload]) -> list[Answer]:
        from safetensors.torch import save

        answers: list[Answer] = []
        for upload in batch:
            (vectors,) = self.model(upload.data, boxes)
            if output == "safetensors":
                answers.append(save({"vectors": vectors.half().cpu()}))
            else:
                numbers = {"length": self.model.length, "vectors": vectors.tolist()}
                answers.append({"task": self.name, "size": upload.size} | numbers)
        return answers


Task = ClassifyTask | DetectTask | SegmentTask | RegionTask


def warm_up(task: Task) -> None:
    """Run the task on a few noise images, so that requests do not wait for one-time work such as compilation.

    torch.compile needs even and odd sizes, and batches of one and two, to create its graphs. Very small maps,
    for which torch uses other convolution kernels, are skipped: their graphs would take a minute to compile.
    """
    scale = min(1.0, (task.limits.pixels / (640 * 480)) ** 0.5)
    for size in ((int(640 * scale), int(480 * scale)), (int(511 * scale), int(333 * scale))):
        file = io.BytesIO()
        Image.effect_noise(size, 60).save(file, "PNG")
        data = file.getvalue()
        upload = task.features(data, "[[0, 0, 90, 90]]") if isinstance(task, RegionTask) else task.predict(data)
        answer_uploads([upload])
        if upload.key is not None:
            answer_uploads([upload, upload])


def _check_box(encoder: RegionEncoder, data: bytes, box: str, limits: Limits, task: str) -> Upload:
    size = header_size(data, limits)
    parsed = parse_box(box, size)
    return Upload(data, size, None, lambda batch: [{"task": task} | explain_box(encoder, size, parsed) for _ in batch])


def _backbone_of(model: Any) -> dict[str, Any]:
    return {"backbone": model.backbone.name, "stride": model.backbone.geometry.stride}
