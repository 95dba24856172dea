import base64
import re
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet import Classifier, ImageError, Prediction, imagenet_classifier
from sppnet.data.images import load_image, to_tensor
from sppnet.demo import regions, run
from sppnet.demo.regions import Pass, Regions, find_regions, regions_section
from sppnet.demo.run import DemoResult, run_demo, sample_photographs
from sppnet.detect.proposals import propose
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.results import Detections
from sppnet.ops.boxes import areas
from tests.helpers.slow_reference import adaptive_bins

NAMES = ("<b>x & y.png", "plain.png")


class Page(HTMLParser):
    """What a browser finds in the report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, tag: str, name: str) -> list[str]:
        return [attrs.get(name) or "" for found, attrs in self.tags if found == tag]


@pytest.fixture(scope="module")
def model() -> Classifier:
    return imagenet_classifier()


@pytest.fixture(scope="module")
def result(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    folder = tmp_path_factory.mktemp("demo")
    noise = torch.randint(0, 256, (70, 90, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise[:, 45:] //= 8
    noise[:40] |= 128
    for name, size in zip(NAMES, ((90, 70), (33, 120)), strict=True):
        Image.fromarray(noise.numpy()).resize(size).save(folder / name)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "imagenet_classifier", lambda: model)
        patch.setattr(regions, "_SAMPLE", 3)
        patch.setattr(regions, "_RUNS", 1)
        made = run_demo(folder / "out", [folder / name for name in NAMES], levels=(2, 1))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    return made


@pytest.fixture(scope="module")
def text(result: DemoResult) -> str:
    return result.report.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:2 of 2 images were seen at a shorter side outside")
def test_answers_equal_those_of_predict(model: Classifier, result: DemoResult) -> None:
    expected = model.predict([answer.source for answer in result.answers])
    assert [answer.size for answer in result.answers] == [(70, 90), (120, 33)]
    for answer, other in zip(result.answers, expected, strict=True):
        assert isinstance(answer, Prediction)
        assert answer.label == other.label
        assert [label for label, _ in answer.top] == [label for label, _ in other.top]
        assert answer.score == pytest.approx(other.score, rel=1e-4)
        assert answer.network_size == other.network_size


def test_report_needs_nothing_but_itself(text: str) -> None:
    page = Page(text)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "//" not in re.sub(r"base64,[^\"]*", "", text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources = page.values("img", "src")
    assert len(sources) == 2 * (1 + 2) + 1
    for source in sources:
        head, _, data = source.partition(",")
        assert head == "data:image/jpeg;base64"
        assert max(load_image(base64.b64decode(data)).size) == 800
    assert all(page.values("img", "alt"))


def test_file_names_are_escaped(text: str) -> None:
    assert "<b>x" not in text
    assert "&lt;b&gt;x &amp; y.png" in text
    assert set(NAMES) <= set(Page(text).texts)


def test_report_has_the_answers_and_every_size(text: str, result: DemoResult) -> None:
    texts = Page(text).texts
    for answer in result.answers:
        assert {label for label, _ in answer.top} <= set(texts)
        assert f"{answer.label}, {100 * answer.score:.1f} %" in texts
    assert "a vector of 6,400 numbers" in " ".join(text.split())
    assert texts.count("6,400") == 12  # 5 bins of 1280 channels, six sizes of two images
    assert {"321 × 225", "400 × 160", "160 × 400", "224 × 224", "35 × 45", "60 × 16"} <= set(texts)


@torch.no_grad()
def test_captions_count_the_bins_that_give_the_answer(model: Classifier, text: str, result: DemoResult) -> None:
    counts = []
    for answer in result.answers:
        image = to_tensor(load_image(answer.source), model.backbone.mean, model.backbone.std)[None]
        cells = model.backbone(image).data[0]
        bins = [
            cells[:, rows][:, :, columns].mean((1, 2))
            for rows in adaptive_bins(cells.shape[1], 2)
            for columns in adaptive_bins(cells.shape[2], 2)
        ]
        logits = torch.stack([model.head(each) for each in bins])
        count = sum(model.config.classes[i] == answer.label for i in logits.argmax(1))
        counts.append(count)
        probabilities = logits.mean(0).softmax(0)
        label = model.config.classes[probabilities.argmax()]
        assert (
            f"{count} of 4 bins answer {answer.label} by themselves; averaged, all 4 answer {label}"
            f" ({100 * probabilities.max():.1f} %)."
        ) in text
    assert min(counts) < 4  # or the count could not be told from the number of bins


def test_pictures_lie_beside_the_report(result: DemoResult) -> None:
    pictures = {path.name: path for path in result.report.parent.glob("*.jpg")}
    names = ("photograph", "level-1", "level-2")
    assert set(pictures) == {f"{stem}-{name}.jpg" for stem in ("b-x-y", "plain") for name in names} | {
        "plain-windows.jpg"
    }
    assert {load_image(path).size for name, path in pictures.items() if name.startswith("plain")} == {(220, 800)}


def test_pictures_of_equal_names_stay_apart() -> None:
    paths = [Path("a/x.png"), Path("b/X.jpg"), Path("x-2.png"), Path("***.png")]
    assert run._stems(paths) == ["x", "x-2", "x-2-2", "image"]


def test_photographs_come_with_the_packages() -> None:
    if not (find_spec("sklearn") and find_spec("skimage")):
        pytest.skip("needs the extra demo")
    sizes = {path.name: load_image(path).size for path in sample_photographs()}
    assert sizes == {
        "china.jpg": (640, 427),
        "flower.jpg": (640, 427),
        "chelsea.png": (451, 300),
        "coffee.png": (600, 400),
    }


def test_missing_packages_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'package sklearn .*pip install "sppnet\[demo\]"'):
        run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_refused_before_the_network_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(run, "imagenet_classifier")
    with pytest.raises(ValueError, match=r"levels\[1\]: expected at least 1 bin a side"):
        run_demo(tmp_path, ["x.png"], levels=(2, 0))
    with pytest.raises(TypeError, match=r"images: expected a sequence of files; got one: 'x\.png'"):
        run_demo(tmp_path, "x.png")
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        run_demo(tmp_path, [tmp_path / "missing.png"])


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "_SAMPLE", 3)
    monkeypatch.setattr(regions, "_RUNS", 1)


def test_windows_of_the_last_photograph_are_classified_in_one_pass(result: DemoResult, text: str) -> None:
    regions = result.regions
    assert regions.once.scale < regions.paper.scale == 688
    assert 1 <= regions.once.distinct <= regions.paper.distinct <= regions.windows <= 2000
    assert regions.once.seconds == regions.once.convolutions + regions.once.pooling + regions.once.head
    assert min(regions.once.seconds, regions.paper.seconds, regions.each, regions.search) > 0
    page = " ".join(" ".join(Page(text).texts).split())
    assert f"Objects in {NAMES[-1]}: {regions.windows:,} windows, one pass" in page
    assert "sample of 3 windows only" in page
    assert "sppnet train detect DATA --out RUN" in page


def test_section_has_the_measured_times_and_their_ratios() -> None:
    found = Detections(torch.tensor([[0.0, 0, 9, 9], [5, 5, 9, 9]]), torch.tensor([0.96, 0.75]), torch.tensor([1, 0]))
    once, paper = Pass(384, 700, 0.1, 0.008, 0.012), Pass(688, 1100, 1.2, 0.02, 0.03)
    regions = Regions(found, 1500, False, 0.84, once, paper, 0.04, 64)
    assert regions.ratio(once) == pytest.approx(500)
    assert regions.ratio(paper) == pytest.approx(48)
    texts = Page(regions_section(regions, ("<cup>", "ladle"), "a", "data:,")).texts
    rows = texts[texts.index("1,500 windows") :]
    assert [text for text in rows if text.strip()][:24] == [
        *("1,500 windows", "384 pixels", "688 pixels"),
        *("different windows among them", "700", "1,100"),
        *("the network, once", "100 ms", "1,200 ms"),
        *("pooling them all", "8 ms", "20 ms"),
        *("the classifier on all of them", "12 ms", "30 ms"),
        *("one pass in all", "120 ms", "1,250 ms"),
        *("a pass for each, by the sample: 1,500 × 40.0 ms", "60.0 s", "60.0 s"),
        *("so many times as long", "500", "48"),
    ]
    words = " ".join(" ".join(texts).split())
    assert "60 % or more: ladle (96 %), <cup> (75 %)." in words
    assert "sample of 64 windows only" in words
    assert "0.8 s, comes before both" in words


def test_section_of_a_photograph_without_likely_windows() -> None:
    nothing = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.long))
    one = Pass(384, 1, 0.1, 0.1, 0.1)
    section = regions_section(Regions(nothing, 1, False, 0.1, one, one, 0.1, 1), (), "a", "data:,")
    assert "60 % or more: none here." in section


@pytest.mark.usefixtures("_quick")
def test_windows_are_likely_and_none_lies_mostly_inside_a_better_one(model: Classifier) -> None:
    if not find_spec("skimage"):
        pytest.skip("needs the extra demo")
    photograph = load_image(sample_photographs()[-1])
    found = find_regions(model, photograph).found
    labels = [model.config.classes[label] for label in found.labels.tolist()]
    assert labels[0] == "espresso"
    left, top, right, bottom = found.boxes[0].tolist()
    assert left < 220 < 360 < right  # the cup
    assert top < 110 < 190 < bottom
    assert 1 <= len(labels) <= 5
    assert found.scores.min() >= 0.6
    for row, box in enumerate(found.boxes):
        for better in found.boxes[:row]:
            shared = torch.cat((torch.maximum(box[:2], better[:2]), torch.minimum(box[2:], better[2:])))
            assert areas(shared) < 0.6 * min(areas(box), areas(better))
    encoder = RegionEncoder(model.backbone, (1,), (384,), reduce="avg")
    with torch.inference_mode():
        alone = model.head(encoder.vectors(encoder.prepare(photograph), found.boxes)).softmax(1)
    torch.testing.assert_close(alone.max(1).values, found.scores, rtol=1e-3, atol=1e-4)
    assert alone.argmax(1).tolist() == found.labels.tolist()


def test_boxes_are_drawn_at_the_size_of_the_picture(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Pass(384, 1, 0.1, 0.1, 0.1)
    sizes = []

    def find(_: Classifier, image: Image.Image) -> Regions:
        sizes.append(image.size)
        box = torch.tensor([[0.25, 0.5, 0.75, 1.0]]) * torch.tensor([image.width, image.height]).repeat(2)
        found = Detections(box, torch.tensor([0.9]), torch.tensor([967]))
        return Regions(found, 1, False, 0.1, one, one, 0.1, 1)

    monkeypatch.setattr(run, "find_regions", find)
    for size in ((100, 50), (1600, 800)):
        picture = np.asarray(run._regions(model, Image.new("RGB", size))[1])
        assert picture.shape == (400, 800, 3)
        rows, columns = np.flatnonzero(picture[:, 599].any(1)), np.flatnonzero(picture[399].any(1))
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (200, 399, 200, 599)
    assert sizes == [(100, 50), (800, 400)]


@pytest.mark.usefixtures("_quick")
def test_without_opencv_the_windows_are_a_grid_and_the_report_says_so(
    model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    photograph = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB")
    regions = find_regions(model, photograph)
    assert regions.grid
    assert regions.windows == len(propose(photograph, "grid", max_windows=2000)) > 1
    section = regions_section(regions, model.config.classes, "a", "data:,")
    assert "They are those of a sliding grid; those of selective search need OpenCV" in " ".join(section.split())
    assert 'pip install "sppnet[detect]"' in section
