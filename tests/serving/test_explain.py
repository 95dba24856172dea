"""Explanations: contributions add up to the logit, and boxes match the cells of the feature map."""

import itertools
import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet import Classifier, ClassifierConfig, RegionEncoder, create_backbone
from sppnet.classify.model import imagenet_classifier
from sppnet.classify.network import Head
from sppnet.data.images import to_tensor
from sppnet.data.resize import Resize
from sppnet.ops.bins import bin_edges
from sppnet.ops.levels import Level, Reduce, parse_levels
from sppnet.segment.model import Segmenter, create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.serving.explain import explain_box, explain_image, explain_taps

CLASSES = ("ash", "birch", "cedar", "date")
NATIVE = Resize("native")
LEVELS: tuple[Level, ...] = (3, (1, 2), 1)
TINY = SegmenterConfig(("ground", "disc"), "test_efficientnet", width=16, rates=(1, 4, 9))


def photograph(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def build(
    head: Head = "linear", reduce: Reduce = "max", levels: tuple[Level, ...] = LEVELS, **options: Any
) -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(CLASSES, "test_resnet", levels=levels, reduce=reduce, head=head, **options)
    model = Classifier(config, create_backbone("test_resnet", None, None)).eval()
    with torch.no_grad():  # large biases, so that omitting one is detected
        for module in model.head.modules():
            if isinstance(module, nn.Linear):
                module.bias.uniform_(0.5, 1.5)
    return model


@cache
def linear_classifier() -> Classifier:
    return build()


@cache
def segmenter() -> Segmenter:
    return create_segmenter(TINY, "none").eval()


def last_layer(model: Classifier) -> nn.Linear:
    *_, last = (module for module in model.head.modules() if isinstance(module, nn.Linear))
    return last


def network_input(model: Classifier, image: Image.Image, resize: Resize) -> Tensor:
    backbone = model.backbone
    return to_tensor(resize(image, backbone.interpolation), backbone.mean, backbone.std)[None]


def total(result: dict[str, Any]) -> float:
    return float(sum(part["contribution"] for level in result["levels"] for part in level["bins"]))


@pytest.mark.parametrize("resize", ["native", "shorter-side:97", "square-min", "warp:130", "center-crop:96"])
@pytest.mark.parametrize("reduce", ["max", "avg"])
@pytest.mark.parametrize("head", ["plain", "linear", "fc"])
def test_contributions_and_rest_add_up_to_the_logit(head: Head, reduce: Reduce, resize: str) -> None:
    model, policy = build(head, reduce), Resize.parse(resize)
    for (height, width), label in zip([(150, 211), (97, 40), (33, 160)], [None, "ash", "date"], strict=True):
        image = photograph(height, width)
        result = explain_image(model, image, policy, label)
        with torch.inference_mode():
            logits = model(network_input(model, image, policy))[0]
        index = int(logits.argmax()) if label is None else CLASSES.index(label)
        assert (result["label"], result["exact"]) == (CLASSES[index], head != "fc")
        assert result["logit"] == pytest.approx(float(logits[index]), rel=1e-5)
        assert result["score"] == pytest.approx(float(logits.softmax(0)[index]), rel=1e-5)
        assert total(result) + result["rest"] == pytest.approx(result["logit"], rel=1e-4)
        assert sum(result["cells"]["values"]) + result["rest"] == pytest.approx(result["logit"], rel=1e-4)
        if head != "fc":
            assert result["rest"] == last_layer(model).bias.tolist()[index]
        assert result["size"] == [height, width]
        assert result["network_size"] == list(policy.target_size(height, width))
        assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("reduce", ["max", "avg"])
@pytest.mark.parametrize("head", ["plain", "linear", "fc"])
def test_contributions_of_several_stages_add_up_to_the_logit(head: Head, reduce: Reduce) -> None:
    model, image = build(head, reduce, stages=(1, 2)), photograph(150, 211)
    result = explain_image(model, image, NATIVE)
    with torch.inference_mode():
        x = network_input(model, image, NATIVE)
        logits, finest = model(x)[0], model.maps(x)[0].data
    assert result["logit"] == pytest.approx(float(logits.max()), rel=1e-5)
    assert total(result) + result["rest"] == pytest.approx(result["logit"], rel=1e-4)
    assert sum(result["cells"]["values"]) + result["rest"] == pytest.approx(result["logit"], rel=1e-4)
    assert [result["cells"]["rows"], result["cells"]["columns"]] == list(finest.shape[2:])


def loop_contributions(model: Classifier, data: Tensor, slope: Tensor) -> tuple[list[float], Tensor]:
    """Compute the contributions of bins and cells in loops over bins and channels."""
    channels, height, width = data.shape
    bins, cells, index = [], torch.zeros(height, width, dtype=torch.float64), 0
    for rows, columns in parse_levels(model.config.levels):
        down, across = bin_edges(height, rows, model.config.rule), bin_edges(width, columns, model.config.rule)
        edges = list(itertools.product(down, across))
        sums = [0.0] * len(edges)
        for channel in range(channels):
            for number, ((top, bottom), (left, right)) in enumerate(edges):
                part, weight = data[channel, top:bottom, left:right].double(), float(slope[index])
                if model.config.reduce == "max":
                    row, column = divmod(int(part.argmax()), right - left)
                    cells[top + row, left + column] += weight * part.max()
                    sums[number] += weight * float(part.max())
                else:
                    cells[top:bottom, left:right] += weight * part / part.numel()
                    sums[number] += weight * float(part.mean())
                index += 1
        bins += sums
    return bins, cells


@pytest.mark.parametrize("rule", ["adaptive", "caffe"])
@pytest.mark.parametrize("reduce", ["max", "avg"])
@pytest.mark.parametrize("head", ["plain", "linear", "fc"])
def test_contributions_match_a_loop_over_bins_and_channels(head: Head, reduce: Reduce, rule: Any) -> None:
    model, image = build(head, reduce, rule=rule), photograph(150, 110)
    result = explain_image(model, image, NATIVE, "cedar")
    data = model.backbone(network_input(model, image, NATIVE)).data[0].detach()
    vector = model.pool(data[None])
    scale = (vector.square().mean() + 1e-6).sqrt() if head == "linear" else 1.0
    if head == "fc":
        slope = torch.autograd.functional.jacobian(lambda v: model.head(v)[0, 2], vector)[0]
    else:
        slope = last_layer(model).weight[2].detach() / scale
    bins, cells = loop_contributions(model, data, slope)
    contributions = [part["contribution"] for level in result["levels"] for part in level["bins"]]
    assert contributions == pytest.approx(bins, rel=1e-4, abs=1e-5)
    assert result["cells"]["values"] == pytest.approx(cells.flatten().tolist(), rel=1e-4, abs=1e-5)
    assert [result["cells"]["rows"], result["cells"]["columns"]] == list(data.shape[1:])
    x, y = result["cells"]["x"], result["cells"]["y"]
    across, down = (bin_edges(len(edges) - 1, 3, model.config.rule) for edges in (x, y))
    assert boxes_of(result["levels"][0]) == [[x[b], y[a], x[d], y[c]] for a, c in down for b, d in across]


def test_fc_head_without_biases_has_no_rest() -> None:
    """The head is then positively homogeneous, so the logit equals gradient times vector."""
    model = build("fc")
    with torch.no_grad():
        for module in model.head.modules():
            if isinstance(module, nn.Linear):
                module.bias.zero_()
    result = explain_image(model, photograph(120, 160), NATIVE)
    assert result["rest"] == pytest.approx(0, abs=1e-4 * abs(result["logit"]))
    assert abs(result["logit"]) > 1e-3


def test_weight_on_one_bin_contributes_only_there() -> None:
    """The lower left of 2 x 2 bins covers 2 x 3 cells of a map of 4 x 6."""
    model = build("plain", "avg", levels=(1, 2))
    assert isinstance(model.head, nn.Linear)
    channels = model.backbone.channels
    with torch.no_grad():
        weight = torch.zeros(4, channels * 5)
        weight[1, channels:].view(channels, 4)[:, 2] = 1
        model.head.weight.copy_(weight)
    result = explain_image(model, photograph(128, 192), NATIVE, "birch")
    values = torch.tensor(result["cells"]["values"]).view(4, 6)
    data = model.backbone(network_input(model, photograph(128, 192), NATIVE)).data[0]
    assert [[part["contribution"] != 0 for part in level["bins"]] for level in result["levels"]] == [
        [False],
        [False, False, True, False],
    ]
    torch.testing.assert_close(values[2:, :3], data.sum(0)[2:, :3].detach() / 6)
    assert not values[:2].any()
    assert not values[:, 3:].any()


@given(
    size=st.tuples(st.integers(1, 230), st.integers(1, 230)),
    resize=st.sampled_from(["native", "shorter-side:64", "warp:100", "center-crop:80"]),
)
@settings(max_examples=25, deadline=None)
def test_bins_and_cells_tile_the_network_input(size: tuple[int, int], resize: str) -> None:
    result = explain_image(linear_classifier(), photograph(*size), Resize.parse(resize))
    left, top, right, bottom = result["seen"]
    assert 0 <= left < right <= size[1]
    assert 0 <= top < bottom <= size[0]
    if not resize.startswith("center-crop"):
        assert result["seen"] == [0, 0, size[1], size[0]]
    x, y = result["cells"]["x"], result["cells"]["y"]
    assert (len(x), len(y)) == (result["cells"]["columns"] + 1, result["cells"]["rows"] + 1)
    assert [x[0], y[0], x[-1], y[-1]] == pytest.approx([left, top, right, bottom])
    assert x == sorted(x)
    assert y == sorted(y)
    for level, (rows, columns) in zip(result["levels"], parse_levels(LEVELS), strict=True):
        assert (level["rows"], level["columns"], len(level["bins"])) == (rows, columns, rows * columns)
        boxes = boxes_of(level)
        down, across = bin_edges(len(y) - 1, rows), bin_edges(len(x) - 1, columns)
        assert boxes == [[x[b], y[a], x[d], y[c]] for (a, c) in down for (b, d) in across]


def test_center_crop_covers_the_center_of_the_photograph() -> None:
    """At 400 x 600, the shorter side is resized to 256; the crop of 224 covers 350 pixels of the photograph."""
    result = explain_image(linear_classifier(), photograph(400, 600), Resize("center-crop", 224))
    assert result["seen"] == [125, 25, 475, 375]
    assert result["network_size"] == [224, 224]
    assert result["levels"][-1]["bins"][0]["box"] == [125, 25, 475, 375]
    x = result["cells"]["x"]
    assert x == pytest.approx([125 + 350 / 224 * (32 * cell) for cell in range(8)], abs=350 / 224 * 16)


def test_cell_edges_match_the_geometry_of_the_backbone() -> None:
    """Edges are scaled back from the warped input to the photograph."""
    result = explain_image(linear_classifier(), photograph(128, 192), Resize("warp", 128))
    geometry = linear_classifier().backbone.geometry
    offset = geometry.offset(128, 128)[1] + 0.5
    expected = [0, *(1.5 * (offset + 32 * (cell - 0.5)) for cell in range(1, 4)), 192]
    assert result["cells"]["x"] == pytest.approx(expected)
    assert result["cells"]["y"] == pytest.approx([0, *(edge / 1.5 for edge in expected[1:-1]), 128])


def test_embedded_network_has_one_bin_and_several_cells() -> None:
    result = explain_image(imagenet_classifier(), photograph(100, 180), NATIVE, "espresso")
    assert [(level["rows"], level["columns"]) for level in result["levels"]] == [(1, 1)]
    assert result["levels"][0]["bins"][0]["box"] == [0, 0, 180, 100]
    assert (result["cells"]["rows"], result["cells"]["columns"], result["exact"]) == (4, 6, True)
    assert total(result) == pytest.approx(sum(result["cells"]["values"]), rel=1e-4)


def test_inference_mode_does_not_change_results() -> None:
    for head in ("plain", "linear", "fc"):
        model, image = build(head), photograph(90, 120)
        expected = explain_image(model, image, NATIVE)
        with torch.inference_mode():
            assert explain_image(model, image, NATIVE) == expected


def test_training_mode_is_restored_and_dropout_is_disabled() -> None:
    model, image = build("fc"), photograph(90, 120)
    expected = explain_image(model, image, NATIVE)
    model.train()
    assert explain_image(model, image, NATIVE) == expected
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_unknown_class_suggests_similar_names() -> None:
    with pytest.raises(ValueError, match=r"label: .* model's 4 classes, got 'brich'; did you mean birch\?"):
        explain_image(linear_classifier(), photograph(90, 90), NATIVE, "brich")
    with pytest.raises(ValueError, match=r"got '12'; for example ash"):
        explain_image(linear_classifier(), photograph(90, 90), NATIVE, "12")


@pytest.mark.parametrize("levels", [(1,), (3, 2, 1), ((1, 2), 6)])
@pytest.mark.parametrize("rule", ["paper", "released", "roi_pool"])
def test_vector_of_a_box_is_pooled_from_its_bins(levels: tuple[Level, ...], rule: Any) -> None:
    encoder = RegionEncoder(create_backbone("test_resnet", None, None), levels, (128,), 400, rule)
    size, box = (96, 160), torch.tensor([20.0, 10.0, 130.0, 70.0])
    result = explain_box(encoder, size, box)
    left, top, right, bottom = result["cells"]
    assert result["cells"] == list(encoder.cells(box, size).cells)
    assert (result["size"], result["network_size"], result["map_size"]) == ([96, 160], [128, 213], [4, 7])
    assert (len(result["x"]), len(result["y"]), result["x"][-1], result["y"][-1]) == (8, 5, 160, 96)
    image = photograph(*size)
    data = encoder.prepare(image).maps[0].data
    (vector,) = encoder(image, box[None])
    parts = []
    for level in result["levels"]:
        assert len(level["bins"]) == level["rows"] * level["columns"]
        values = []
        for x1, y1, x2, y2 in boxes_of(level):
            (first, last), (upper, lower) = map(result["x"].index, (x1, x2)), map(result["y"].index, (y1, y2))
            values.append(data[0, :, upper:lower, first:last].amax((1, 2)))
        parts.append(torch.stack(values, 1).flatten())
    torch.testing.assert_close(vector[0], torch.cat(parts))
    assert (right - left, bottom - top) >= (1, 1)
    assert json.loads(json.dumps(result)) == result


def boxes_of(level: dict[str, Any]) -> list[list[float]]:
    return [part["box"] for part in level["bins"]]


def test_roi_pool_cells_outside_the_map_have_no_area() -> None:
    encoder = RegionEncoder(create_backbone("test_resnet", None, None), (2,), (64,), 400, "roi_pool")
    result = explain_box(encoder, (64, 64), torch.tensor([50.0, 50.0, 64.0, 64.0]))
    assert result["map_size"] == [2, 2]
    assert result["cells"] == [2, 2, 3, 3]
    assert {tuple(box) for box in boxes_of(result["levels"][0])} == {(64.0, 64.0, 64.0, 64.0)}


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)))
@settings(max_examples=20, deadline=None)
def test_live_taps_match_a_convolution_of_ones(size: tuple[int, int]) -> None:
    result = explain_taps(segmenter(), size)
    rows, columns = result["map_size"]
    assert result["size"] == list(size)
    for entry, rate in zip(result["rates"], (1, 4, 9), strict=True):
        ones, live = torch.ones(1, 1, rows, columns), []
        for tap in range(9):
            kernel = F.one_hot(torch.tensor(tap), 9).float().view(1, 1, 3, 3)
            live.append(float(F.conv2d(ones, kernel, padding=rate, dilation=rate).mean()))
        assert entry["rate"] == rate
        assert entry["live"] == pytest.approx(live)
        assert entry["share"] == pytest.approx(sum(live) / 9)


def test_live_taps_of_a_map_of_4_x_8_cells() -> None:
    """At rate 4, the upper and lower taps are never live, and the left and right ones at half of the cells."""
    result = explain_taps(segmenter(), (64, 128))
    assert result["map_size"] == [4, 8]
    assert result["rates"][1] == {"rate": 4, "share": pytest.approx(2 / 9), "live": [0, 0, 0, 0.5, 1, 0.5, 0, 0, 0]}
    assert result["rates"][0]["live"] == pytest.approx(
        [21 / 32, 3 / 4, 21 / 32, 7 / 8, 1, 7 / 8, 21 / 32, 3 / 4, 21 / 32]
    )


def test_map_size_matches_the_forward_pass() -> None:
    """This includes images below the smallest size of the backbone, which are enlarged."""
    config = replace(TINY, backbone="densenet121", head="deeplabv3", output_stride=32)
    model = create_segmenter(config, "none").eval()
    assert model.backbone.geometry.smallest() == (29, 29)
    maps: list[torch.Size] = []
    model.head.context.register_forward_hook(lambda _, __, out: maps.append(out.shape))
    for size in ((1, 40), (37, 90), (130, 64)):
        with torch.inference_mode():
            model(torch.zeros(1, 3, *size))
        assert explain_taps(model, size)["map_size"] == list(maps[-1][2:])


def test_rejects_segmenters_without_aspp() -> None:
    model = create_segmenter(replace(TINY, context="ppm", rates=()), "none")
    with pytest.raises(ValueError, match=r"model: expected a segmenter with ASPP.* deeplabv3plus with context='ppm'"):
        explain_taps(model, (64, 64))
