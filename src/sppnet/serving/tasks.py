"""What each kind of model is asked and answers, from the bytes of a photograph to plain numbers."""

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
from sppnet.classify.predict import answer_of, read_image, size_policy
from sppnet.data.images import load_image
from sppnet.data.resize import Resize
from sppnet.detect.model import Detector, list_objects
from sppnet.detect.proposals import propose
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.memory import MemoryLimitError
from sppnet.inference.results import above
from sppnet.ops.bins import parse_levels
from sppnet.segment.memory import whole_fits
from sppnet.segment.model import Segmenter
from sppnet.segment.pictures import labels_picture, palette
from sppnet.segment.views import View, label_image
from sppnet.serving.engines import Probabilities
from sppnet.serving.explain import class_index, explain_box, explain_image, explain_taps
from sppnet.serving.limits import Limits, Refusal
from sppnet.serving.uploads import (
    Answer,
    Asked,
    answer_asked,
    header_size,
    parse_box,
    parse_boxes,
)

Kind = Literal["classify", "detect", "segment", "regions"]

_JSON_NUMBERS = 2_000_000  # of vectors in one answer


class ClassifyTask:
    """A classifier behind the server."""

    name = "classify"

    def __init__(self, model: Classifier, limits: Limits, run: Probabilities) -> None:
        self.model, self.limits, self._run = model, limits, run

    def describe(self) -> dict[str, Any]:
        """What `/v1/model` tells of it."""
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

    def predict(self, data: bytes, resize: str | None = None) -> Asked:
        """Ask for the class of a photograph."""
        policy = self._policy(resize)
        return Asked(data, self._network_size(data, policy), str(policy), partial(self._predict, policy))

    def explain(self, data: bytes, resize: str | None = None, label: str | None = None) -> Asked:
        """Ask what each bin gave to a class, the best one if none is named."""
        policy = self._policy(resize)
        try:
            _ = label is None or class_index(self.model.config.classes, label)
        except ValueError as error:
            raise Refusal("bad_option", str(error)) from error
        return Asked(data, self._network_size(data, policy), None, partial(self._explain, policy, label))

    def _policy(self, resize: str | None) -> Resize:
        try:
            return size_policy(self.model, resize or None)
        except ValueError as error:
            raise Refusal("bad_option", str(error)) from error

    def _network_size(self, data: bytes, policy: Resize) -> tuple[int, int]:
        size = policy.target_size(*header_size(data, self.limits))
        backbone = self.model.backbone
        most = max(self.model.config.max_pixels, backbone.side**2)
        if policy != self.model.resize and size[0] * size[1] > most:
            raise Refusal(
                "bad_option",
                f"resize: {policy} gives {size[0]} x {size[1]} pixels; expected at most {most}, as of {policy.policy}:"
                f"{math.isqrt(most)}",
            )
        geometry = backbone.geometry
        if min(geometry.map_size(*size)) < 1:
            smallest = " x ".join(map(str, geometry.smallest()))
            raise Refusal("too_small", f"the network would see {size[0]} x {size[1]} pixels; it needs {smallest}")
        return size

    def _predict(self, policy: Resize, batch: Sequence[Asked]) -> list[Answer]:
        loaded = [read_image(self.model, asked.data, policy) for asked in batch]
        answers: list[Answer] = []
        for item, probabilities in zip(loaded, self._run([item.image for item in loaded]), strict=True):
            found = answer_of(self.model, "", item, probabilities)
            top = [{"label": label, "score": score} for label, score in found.top]
            sizes = {"size": found.size, "network_size": found.network_size, "resize": str(policy)}
            answers.append({"task": self.name, "label": found.label, "score": found.score, "top": top} | sizes)
        return answers

    def _explain(self, policy: Resize, label: str | None, batch: Sequence[Asked]) -> list[Answer]:
        return [explain_image(self.model, load_image(asked.data), policy, label) for asked in batch]


class DetectTask:
    """A detector behind the server; photographs are looked at one by one."""

    name = "detect"

    def __init__(self, model: Detector, limits: Limits, shown: float) -> None:
        self.model, self.limits, self._shown = model, limits, shown

    def describe(self) -> dict[str, Any]:
        """What `/v1/model` tells of it."""
        config = self.model.config
        return {
            "classes": config.classes,
            "levels": parse_levels(config.levels),
            "shown_score": self._shown,
            "score_range": (0.0, 1.0) if config.scorer == "softmax" else (-1.5, 3.0),
        } | _backbone_of(self.model.encoder)

    def predict(self, data: bytes, min_score: float | None = None) -> Asked:
        """Ask for the objects of a photograph."""
        least = self._shown if min_score is None else min_score
        return Asked(data, header_size(data, self.limits), None, partial(self._predict, least))

    def explain(self, data: bytes, box: str) -> Asked:
        """Ask which cells a box pools."""
        encoder = self.model.encoder
        if not isinstance(encoder, RegionEncoder):
            raise Refusal(
                "bad_option", "box: R-CNN warps each window for a pass of its own; it pools no cells of a box"
            )
        return _ask_box(encoder, data, box, self.limits, self.name)

    def _predict(self, least: float, batch: Sequence[Asked]) -> list[Answer]:
        answers: list[Answer] = []
        config = self.model.config
        for asked in batch:
            image = load_image(asked.data)
            windows = propose(image, config.proposals, max_windows=config.windows, seconds=config.proposal_seconds)
            objects = list_objects(above(self.model.detect(image, windows), least), config.classes)
            sizes = {"size": (image.height, image.width), "windows": len(windows)}
            answers.append({"task": self.name, "objects": objects} | sizes)
        return answers


class SegmentTask:
    """A segmenter behind the server."""

    name = "segment"

    def __init__(self, model: Segmenter, limits: Limits, memory: int) -> None:
        self.model, self.limits, self._memory, self._view = model, limits, memory, View(memory=memory)

    def describe(self) -> dict[str, Any]:
        """What `/v1/model` tells of it."""
        config = self.model.config
        colours = palette(config.colours, len(config.classes)).tolist()
        rates = getattr(self.model.head.context, "rates", ())
        return {"classes": config.classes, "colours": colours, "rates": rates} | _backbone_of(self.model)

    def predict(self, data: bytes) -> Asked:
        """Ask for the class of each pixel of a photograph."""
        return Asked(data, header_size(data, self.limits), "predict", self._predict)

    def explain(self, data: bytes) -> Asked:
        """Ask how much of each rate's taps the photograph's map leaves."""
        if not getattr(self.model.head.context, "rates", ()):
            raise Refusal("bad_option", "explain: live taps are those of ASPP; this model has none")
        return Asked(data, header_size(data, self.limits), None, self._explain)

    def _predict(self, batch: Sequence[Asked]) -> list[Answer]:
        images = [load_image(asked.data) for asked in batch]
        height, width = images[0].height, images[0].width
        if len(images) > 1 and whole_fits(self.model, len(images) * height, width, self._memory):
            with torch.inference_mode():
                logits = self.model(torch.cat([self.model.pixels(image) for image in images]))
            labels = [one.softmax(0).cpu().argmax(0) for one in logits]
        else:
            labels = [self._label(image, asked) for image, asked in zip(images, batch, strict=True)]
        return [self._answer(one) for one in labels]

    def _label(self, image: Image.Image, asked: Asked) -> Tensor:
        try:
            return label_image(self.model, image, self._view, asked.go_on)
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

    def _explain(self, batch: Sequence[Asked]) -> list[Answer]:
        return [explain_taps(self.model, asked.size) for asked in batch]


class RegionTask:
    """A region encoder behind the server."""

    name = "regions"

    def __init__(self, encoder: RegionEncoder, limits: Limits) -> None:
        self.model, self.limits = encoder, limits

    def describe(self) -> dict[str, Any]:
        """What `/v1/model` tells of it."""
        return {"levels": parse_levels(self.model.levels), "length": self.model.length} | _backbone_of(self.model)

    def features(self, data: bytes, boxes: str, output: str = "json") -> Asked:
        """Ask for the vectors of boxes, as JSON or as the bytes of a safetensors file."""
        size = header_size(data, self.limits)
        parsed = parse_boxes(boxes, size, self.limits)
        if output not in ("json", "safetensors"):
            raise Refusal("bad_option", f"output: expected json or safetensors; got {output!r}")
        if output == "json" and len(parsed) * self.model.length > _JSON_NUMBERS:
            most = _JSON_NUMBERS // self.model.length
            raise Refusal(
                "too_many_boxes",
                f"boxes: {len(parsed)} vectors of {self.model.length} numbers are too many for JSON; take at most"
                f" {most} boxes, or output=safetensors",
            )
        return Asked(data, size, None, partial(self._features, parsed, output))

    def explain(self, data: bytes, box: str) -> Asked:
        """Ask which cells a box pools."""
        return _ask_box(self.model, data, box, self.limits, self.name)

    def _features(self, boxes: Tensor, output: str, batch: Sequence[Asked]) -> list[Answer]:
        from safetensors.torch import save

        answers: list[Answer] = []
        for asked in batch:
            (vectors,) = self.model(asked.data, boxes)
            if output == "safetensors":
                answers.append(save({"vectors": vectors.half().cpu()}))
            else:
                numbers = {"length": self.model.length, "vectors": vectors.tolist()}
                answers.append({"task": self.name, "size": asked.size} | numbers)
        return answers


Task = ClassifyTask | DetectTask | SegmentTask | RegionTask


def warm_up(task: Task) -> None:
    """Have the task answer for a few made-up photographs, so that no one waits for what is done once.

    Even and odd sizes, and batches of one and of two: what torch.compile makes graphs for. It makes others for maps so
    small that torch has other convolutions for them, which are not worth their minute.
    """
    scale = min(1.0, (task.limits.pixels / (640 * 480)) ** 0.5)
    for size in ((int(640 * scale), int(480 * scale)), (int(511 * scale), int(333 * scale))):
        file = io.BytesIO()
        Image.effect_noise(size, 60).save(file, "PNG")
        data = file.getvalue()
        asked = task.features(data, "[[0, 0, 90, 90]]") if isinstance(task, RegionTask) else task.predict(data)
        answer_asked([asked])
        if asked.key is not None:
            answer_asked([asked, asked])


def _ask_box(encoder: RegionEncoder, data: bytes, box: str, limits: Limits, task: str) -> Asked:
    size = header_size(data, limits)
    parsed = parse_box(box, size)
    return Asked(data, size, None, lambda batch: [{"task": task} | explain_box(encoder, size, parsed) for _ in batch])


def _backbone_of(model: Any) -> dict[str, Any]:
    return {"backbone": model.backbone.name, "stride": model.backbone.geometry.stride}
