"""What gave an answer: contributions of bins and cells add up to the logit, boxes lie where the network looked."""

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
from sppnet.ops.bins import Level, bin_edges, parse_levels
from sppnet.ops.reference import Reduce
from sppnet.segment.model import Segmenter, SegmenterConfig, create_segmenter
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
    with torch.no_grad():  # biases that cannot be overlooked
        for module in model.head.modules():
            if isinstance(module, nn.Linear):
                module.bias.uniform_(0.5, 1.5)
    return model


@cache
def tiled() -> Classifier:
    return build()


@cache
def segmenter() -> Segmenter:
    return create_segmenter(TINY, "none").eval()


def last_of(model: Classifier) -> nn.Linear:
    *_, last = (module for module in model.head.modules() if isinstance(module, nn.Linear))
    return last


def seen_by(model: Classifier, image: Image.Image, resize: Resize) -> Tensor:
    backbone = model.backbone
    return to_tensor(resize(image, backbone.interpolation), backbone.mean, backbone.std)[None]


def total(found: dict[str, Any]) -> float:
    return float(sum(one["contribution"] for level in found["levels"] for one in level["bins"]))


@pytest.mark.parametrize("resize", ["native", "shorter-side:97", "square-min", "warp:130", "center-crop:96"])
@pytest.mark.parametrize("reduce", ["max", "avg"])
@pytest.mark.parametrize("head", ["plain", "linear", "fc"])
def test_bins_and_rest_add_up_to_the_logit_and_so_do_cells(head: Head, reduce: Reduce, resize: str) -> None:
    model, policy = build(head, reduce), Resize.parse(resize)
    for (height, width), label in zip([(150, 211), (97, 40), (33, 160)], [None, "ash", "date"], strict=True):
        image = photograph(height, width)
        found = explain_image(model, image, policy, label)
        with torch.inference_mode():
            logits = model(seen_by(model, image, policy))[0]
        index = int(logits.argmax()) if label is None else CLASSES.index(label)
        assert (found["label"], found["exact"]) == (CLASSES[index], head != "fc")
        assert found["logit"] == pytest.approx(float(logits[index]), rel=1e-5)
        assert found["score"] == pytest.approx(float(logits.softmax(0)[index]), rel=1e-5)
        assert total(found) + found["rest"] == pytest.approx(found["logit"], rel=1e-4)
        assert sum(found["cells"]["values"]) + found["rest"] == pytest.approx(found["logit"], rel=1e-4)
        if head != "fc":
            assert found["rest"] == last_of(model).bias.tolist()[index]
        assert found["size"] == [height, width]
        assert found["network_size"] == list(policy.target_size(height, width))
        assert json.loads(json.dumps(found)) == found


def loops(model: Classifier, data: Tensor, slope: Tensor) -> tuple[list[float], Tensor]:
    """Bin by bin and channel by channel: what each bin and each cell gave."""
    channels, height, width = data.shape
    bins, cells, place = [], torch.zeros(height, width, dtype=torch.float64), 0
    for rows, columns in parse_levels(model.config.levels):
        down, across = bin_edges(height, rows, model.config.rule), bin_edges(width, columns, model.config.rule)
        edges = list(itertools.product(down, across))
        sums = [0.0] * len(edges)
        for channel in range(channels):
            for number, ((top, bottom), (left, right)) in enumerate(edges):
                part, weight = data[channel, top:bottom, left:right].double(), float(slope[place])
                if model.config.reduce == "max":
                    row, column = divmod(int(part.argmax()), right - left)
                    cells[top + row, left + column] += weight * part.max()
                    sums[number] += weight * float(part.max())
                else:
                    cells[top:bottom, left:right] += weight * part / part.numel()
                    sums[number] += weight * float(part.mean())
                place += 1
        bins += sums
    return bins, cells


@pytest.mark.parametrize("rule", ["adaptive", "caffe"])
@pytest.mark.parametrize("reduce", ["max", "avg"])
@pytest.mark.parametrize("head", ["plain", "linear", "fc"])
def test_contributions_are_those_of_a_loop_over_bins_and_channels(head: Head, reduce: Reduce, rule: Any) -> None:
    model, image = build(head, reduce, rule=rule), photograph(150, 110)
    found = explain_image(model, image, NATIVE, "cedar")
    data = model.backbone(seen_by(model, image, NATIVE)).data[0].detach()
    vector = model.pool(data[None])
    scale = (vector.square().mean() + 1e-6).sqrt() if head == "linear" else 1.0
    if head == "fc":
        slope = torch.autograd.functional.jacobian(lambda v: model.head(v)[0, 2], vector)[0]
    else:
        slope = last_of(model).weight[2].detach() / scale
    bins, cells = loops(model, data, slope)
    given = [one["contribution"] for level in found["levels"] for one in level["bins"]]
    assert given == pytest.approx(bins, rel=1e-4, abs=1e-5)
    assert found["cells"]["values"] == pytest.approx(cells.flatten().tolist(), rel=1e-4, abs=1e-5)
    assert [found["cells"]["rows"], found["cells"]["columns"]] == list(data.shape[1:])
    x, y = found["cells"]["x"], found["cells"]["y"]
    across, down = (bin_edges(len(edges) - 1, 3, model.config.rule) for edges in (x, y))
    assert boxes_of(found["levels"][0]) == [[x[b], y[a], x[d], y[c]] for a, c in down for b, d in across]


def test_without_biases_the_fc_head_leaves_no_rest() -> None:
    """It is then linear along a ray: gradient times vector is the logit."""
    model = build("fc")
    with torch.no_grad():
        for module in model.head.modules():
            if isinstance(module, nn.Linear):
                module.bias.zero_()
    found = explain_image(model, photograph(120, 160), NATIVE)
    assert found["rest"] == pytest.approx(0, abs=1e-4 * abs(found["logit"]))
    assert abs(found["logit"]) > 1e-3


def test_weight_on_one_bin_is_seen_at_that_bin_alone() -> None:
    """The lower left of 2 x 2 bins on a map of 4 x 6 cells: half of each side."""
    model = build("plain", "avg", levels=(1, 2))
    assert isinstance(model.head, nn.Linear)
    channels = model.backbone.channels
    with torch.no_grad():
        weight = torch.zeros(4, channels * 5)
        weight[1, channels:].view(channels, 4)[:, 2] = 1
        model.head.weight.copy_(weight)
    found = explain_image(model, photograph(128, 192), NATIVE, "birch")
    values = torch.tensor(found["cells"]["values"]).view(4, 6)
    data = model.backbone(seen_by(model, photograph(128, 192), NATIVE)).data[0]
    assert [[one["contribution"] != 0 for one in level["bins"]] for level in found["levels"]] == [
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
def test_bins_and_cells_tile_what_was_seen(size: tuple[int, int], resize: str) -> None:
    found = explain_image(tiled(), photograph(*size), Resize.parse(resize))
    left, top, right, bottom = found["seen"]
    assert 0 <= left < right <= size[1]
    assert 0 <= top < bottom <= size[0]
    if not resize.startswith("center-crop"):
        assert found["seen"] == [0, 0, size[1], size[0]]
    x, y = found["cells"]["x"], found["cells"]["y"]
    assert (len(x), len(y)) == (found["cells"]["columns"] + 1, found["cells"]["rows"] + 1)
    assert [x[0], y[0], x[-1], y[-1]] == pytest.approx([left, top, right, bottom])
    assert x == sorted(x)
    assert y == sorted(y)
    for level, (rows, columns) in zip(found["levels"], parse_levels(LEVELS), strict=True):
        assert (level["rows"], level["columns"], len(level["bins"])) == (rows, columns, rows * columns)
        boxes = [one["box"] for one in level["bins"]]
        down, across = bin_edges(len(y) - 1, rows), bin_edges(len(x) - 1, columns)
        assert boxes == [[x[b], y[a], x[d], y[c]] for (a, c) in down for (b, d) in across]


def test_a_centre_crop_sees_the_middle_of_the_photograph() -> None:
    """Of 400 x 600 the shorter side becomes 256, of which 224 are cut out: 350 of the photograph's pixels."""
    found = explain_image(tiled(), photograph(400, 600), Resize("center-crop", 224))
    assert found["seen"] == [125, 25, 475, 375]
    assert found["network_size"] == [224, 224]
    assert found["levels"][-1]["bins"][0]["box"] == [125, 25, 475, 375]
    x = found["cells"]["x"]
    assert x == pytest.approx([125 + 350 / 224 * (32 * cell) for cell in range(8)], abs=350 / 224 * 16)


def test_cells_lie_where_the_network_has_them() -> None:
    """The same edges as those of the pictures, stretched where the photograph was warped."""
    found = explain_image(tiled(), photograph(128, 192), Resize("warp", 128))
    geometry = tiled().backbone.geometry
    offset = geometry.offset(128, 128)[1] + 0.5
    expected = [0, *(1.5 * (offset + 32 * (cell - 0.5)) for cell in range(1, 4)), 192]
    assert found["cells"]["x"] == pytest.approx(expected)
    assert found["cells"]["y"] == pytest.approx([0, *(edge / 1.5 for edge in expected[1:-1]), 128])


def test_the_embedded_network_has_one_bin_and_cells() -> None:
    found = explain_image(imagenet_classifier(), photograph(100, 180), NATIVE, "espresso")
    assert [(level["rows"], level["columns"]) for level in found["levels"]] == [(1, 1)]
    assert found["levels"][0]["bins"][0]["box"] == [0, 0, 180, 100]
    assert (found["cells"]["rows"], found["cells"]["columns"], found["exact"]) == (4, 6, True)
    assert total(found) == pytest.approx(sum(found["cells"]["values"]), rel=1e-4)


def test_in_inference_mode_the_numbers_are_the_same() -> None:
    for head in ("plain", "linear", "fc"):
        model, image = build(head), photograph(90, 120)
        expected = explain_image(model, image, NATIVE)
        with torch.inference_mode():
            assert explain_image(model, image, NATIVE) == expected


def test_a_model_in_training_is_explained_without_dropout_and_stays_in_training() -> None:
    model, image = build("fc"), photograph(90, 120)
    expected = explain_image(model, image, NATIVE)
    model.train()
    assert explain_image(model, image, NATIVE) == expected
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_unknown_class_is_refused_with_those_like_it() -> None:
    with pytest.raises(ValueError, match=r"label: .* model's 4 classes; got 'brich'; did you mean 'birch'\?"):
        explain_image(tiled(), photograph(90, 90), NATIVE, "brich")
    with pytest.raises(ValueError, match=r"got '12'; one is 'ash'"):
        explain_image(tiled(), photograph(90, 90), NATIVE, "12")


@pytest.mark.parametrize("levels", [(1,), (3, 2, 1), ((1, 2), 6)])
@pytest.mark.parametrize("rule", ["paper", "released", "roi_pool"])
def test_a_boxes_bins_are_those_that_its_vector_is_pooled_from(levels: tuple[Level, ...], rule: Any) -> None:
    encoder = RegionEncoder(create_backbone("test_resnet", None, None), levels, (128,), 400, rule)
    size, box = (96, 160), torch.tensor([20.0, 10.0, 130.0, 70.0])
    found = explain_box(encoder, size, box)
    left, top, right, bottom = found["cells"]
    assert found["cells"] == list(encoder.cells(box, size).cells)
    assert (found["size"], found["network_size"], found["map_size"]) == ([96, 160], [128, 213], [4, 7])
    assert (len(found["x"]), len(found["y"]), found["x"][-1], found["y"][-1]) == (8, 5, 160, 96)
    image = photograph(*size)
    data = encoder.prepare(image).maps[0].data
    (vector,) = encoder(image, box[None])
    parts = []
    for level in found["levels"]:
        assert len(level["bins"]) == level["rows"] * level["columns"]
        values = []
        for x1, y1, x2, y2 in boxes_of(level):
            (first, last), (upper, lower) = map(found["x"].index, (x1, x2)), map(found["y"].index, (y1, y2))
            values.append(data[0, :, upper:lower, first:last].amax((1, 2)))
        parts.append(torch.stack(values, 1).flatten())
    torch.testing.assert_close(vector[0], torch.cat(parts))
    assert (right - left, bottom - top) >= (1, 1)
    assert json.loads(json.dumps(found)) == found


def boxes_of(level: dict[str, Any]) -> list[list[float]]:
    return [one["box"] for one in level["bins"]]


def test_cells_of_roi_pool_outside_the_map_have_no_area() -> None:
    encoder = RegionEncoder(create_backbone("test_resnet", None, None), (2,), (64,), 400, "roi_pool")
    found = explain_box(encoder, (64, 64), torch.tensor([50.0, 50.0, 64.0, 64.0]))
    assert found["map_size"] == [2, 2]
    assert found["cells"] == [2, 2, 3, 3]
    assert {tuple(box) for box in boxes_of(found["levels"][0])} == {(64.0, 64.0, 64.0, 64.0)}


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)))
@settings(max_examples=20, deadline=None)
def test_live_taps_are_those_that_a_convolution_of_ones_sees(size: tuple[int, int]) -> None:
    found = explain_taps(segmenter(), size)
    rows, columns = found["map_size"]
    assert found["size"] == list(size)
    for entry, rate in zip(found["rates"], (1, 4, 9), strict=True):
        ones, seen = torch.ones(1, 1, rows, columns), []
        for tap in range(9):
            kernel = F.one_hot(torch.tensor(tap), 9).float().view(1, 1, 3, 3)
            seen.append(float(F.conv2d(ones, kernel, padding=rate, dilation=rate).mean()))
        assert entry["rate"] == rate
        assert entry["live"] == pytest.approx(seen)
        assert entry["share"] == pytest.approx(sum(seen) / 9)


def test_live_taps_of_a_map_of_4_x_8_cells() -> None:
    """Rate 4 has no tap above or below, and one to the side for half of the cells."""
    found = explain_taps(segmenter(), (64, 128))
    assert found["map_size"] == [4, 8]
    assert found["rates"][1] == {"rate": 4, "share": pytest.approx(2 / 9), "live": [0, 0, 0, 0.5, 1, 0.5, 0, 0, 0]}
    assert found["rates"][0]["live"] == pytest.approx(
        [21 / 32, 3 / 4, 21 / 32, 7 / 8, 1, 7 / 8, 21 / 32, 3 / 4, 21 / 32]
    )


def test_the_map_is_that_of_the_pass() -> None:
    """Also for an image that is too small for the backbone, and is enlarged for it."""
    config = replace(TINY, backbone="densenet121", head="deeplabv3", output_stride=32)
    model = create_segmenter(config, "none").eval()
    assert model.backbone.geometry.smallest() == (29, 29)
    maps: list[torch.Size] = []
    model.head.context.register_forward_hook(lambda _, __, out: maps.append(out.shape))
    for size in ((1, 40), (37, 90), (130, 64)):
        with torch.inference_mode():
            model(torch.zeros(1, 3, *size))
        assert explain_taps(model, size)["map_size"] == list(maps[-1][2:])


def test_a_segmenter_without_rates_is_refused() -> None:
    model = create_segmenter(replace(TINY, context="ppm", rates=()), "none")
    with pytest.raises(ValueError, match=r"model: expected a segmenter with ASPP.* deeplabv3plus with context='ppm'"):
        explain_taps(model, (64, 64))
