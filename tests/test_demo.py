import base64
import re
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from reference import adaptive_bins

from sppnet import Classifier, ImageError, Prediction, demo, imagenet_classifier
from sppnet.boxes import overlaps
from sppnet.data.images import load_image, to_tensor
from sppnet.demo import DemoResult, run_demo, sample_photographs
from sppnet.demo_regions import find_regions, regions_section
from sppnet.encoder import RegionEncoder

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
        patch.setattr(demo, "imagenet_classifier", lambda: model)
        made = run_demo(folder / "out", [folder / name for name in NAMES], levels=(2, 1))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    return made


@pytest.fixture(scope="module")
def text(result: DemoResult) -> str:
    return result.report.read_text(encoding="utf-8")


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
    assert demo._stems(paths) == ["x", "x-2", "x-2-2", "image"]


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
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'package sklearn .*pip install "sppnet\[demo\]"'):
        run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_refused_before_the_network_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(demo, "imagenet_classifier")
    with pytest.raises(ValueError, match=r"levels\[1\]: expected at least 1 bin a side"):
        run_demo(tmp_path, ["x.png"], levels=(2, 0))
    with pytest.raises(TypeError, match=r"images: expected a sequence of files; got one: 'x\.png'"):
        run_demo(tmp_path, "x.png")
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        run_demo(tmp_path, [tmp_path / "missing.png"])


def test_windows_of_the_last_photograph_are_classified_in_one_pass(
    model: Classifier, result: DemoResult, text: str
) -> None:
    regions = result.regions
    assert 1 <= regions.distinct <= regions.windows <= 2000
    assert regions.ratio == pytest.approx(
        regions.each * regions.windows / (regions.convolutions + regions.pooling + regions.head)
    )
    found = Page(text)
    assert f"Objects in {NAMES[-1]}: {regions.windows:,} windows, one pass" in " ".join(found.texts)
    assert f"measured on a sample of {regions.sample} windows" in " ".join(" ".join(found.texts).split())
    assert (result.report.parent / "plain-windows.jpg").exists()


def test_windows_are_the_best_of_their_class_and_none_lies_inside_another(model: Classifier) -> None:
    photograph = load_image(sample_photographs()[-1]).resize((300, 200))
    regions = find_regions(model, photograph)
    assert "espresso" in {model.config.classes[label] for label in regions.found.labels.tolist()}
    assert regions.found.scores.min() >= 0.5
    shared = overlaps(regions.found.boxes, regions.found.boxes).fill_diagonal_(0)
    assert float(shared.max()) < 0.6
    (row,) = (regions.found.boxes[:1],)
    encoder = RegionEncoder(model.backbone, (1,), (320,), reduce="avg")
    with torch.inference_mode():
        alone = model.head(encoder.vectors(encoder.prepare(photograph), row)).softmax(1).max()
    assert float(alone) == pytest.approx(float(regions.found.scores[0]), rel=1e-3)


def test_without_opencv_the_windows_are_a_grid_and_the_report_says_so(
    model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    regions = find_regions(model, load_image(sample_photographs()[-1]).resize((90, 60)))
    assert "a sliding grid, as OpenCV is not installed" in regions_section(regions, model.config.classes, "a", "data:,")
