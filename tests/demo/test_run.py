import base64
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet import ClassificationResult, Classifier, ImageError, imagenet_classifier
from sppnet.data.images import load_image, to_tensor
from sppnet.demo import regions, run
from sppnet.demo.regions import PassTiming, Regions
from sppnet.demo.run import DemoResult, run_demo, sample_photographs
from sppnet.inference.results import Detections
from tests.helpers.html_page import Page
from tests.helpers.slow_reference import adaptive_bins

NAMES = ("<b>x & y.png", "plain.png")


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
        demo = run_demo(folder / "out", [folder / name for name in NAMES], levels=(2, 1))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    return demo


@pytest.fixture(scope="module")
def text(result: DemoResult) -> str:
    return result.report.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:2 of 2 images were classified at a shorter side outside")
def test_predictions_match_predict(model: Classifier, result: DemoResult) -> None:
    expected = model.predict([answer.source for answer in result.answers], resize="native")
    assert [answer.size for answer in result.answers] == [(70, 90), (120, 33)]
    for answer, other in zip(result.answers, expected, strict=True):
        assert isinstance(answer, ClassificationResult)
        assert answer.label == other.label
        assert [label for label, _ in answer.top] == [label for label, _ in other.top]
        assert answer.score == pytest.approx(other.score, rel=1e-4)
        assert answer.network_size == other.network_size


def test_report_is_self_contained(text: str) -> None:
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


def test_report_has_predictions_and_every_size(text: str, result: DemoResult) -> None:
    texts = Page(text).texts
    for answer in result.answers:
        assert {label for label, _ in answer.top} <= set(texts)
        assert f"{answer.label}, {100 * answer.score:.1f}%" in texts
    assert "a vector of 6,400 values" in Page(text).words()
    assert texts.count("6,400") == 12  # 5 bins of 1280 channels; six sizes of two images
    assert {"321 × 225", "400 × 160", "160 × 400", "224 × 224", "35 × 45", "60 × 16"} <= set(texts)


@torch.no_grad()
def test_captions_count_the_bins_that_agree_with_the_prediction(
    model: Classifier, text: str, result: DemoResult
) -> None:
    counts = []
    for answer in result.answers:
        image = to_tensor(load_image(answer.source), model.backbone.mean, model.backbone.std)[None]
        cells = model.backbone(image).data[0]
        bins = [
            cells[:, rows][:, :, columns].mean((1, 2))
            for rows in adaptive_bins(cells.shape[1], 2)
            for columns in adaptive_bins(cells.shape[2], 2)
        ]
        logits = torch.stack([model.head(vector) for vector in bins])
        count = sum(model.config.classes[i] == answer.label for i in logits.argmax(1))
        counts.append(count)
        probabilities = model.head(torch.stack(bins).mean(0)).softmax(0)
        label = model.config.classes[probabilities.argmax()]
        assert (
            f"{count} of 4 bins predict {answer.label} on their own; the average of all 4 predicts {label}"
            f" ({100 * probabilities.max():.1f}%)."
        ) in text
    assert min(counts) < 4  # otherwise the count equals the number of bins


def test_pictures_are_saved_next_to_the_report(result: DemoResult) -> None:
    pictures = {path.name: path for path in result.report.parent.glob("*.jpg")}
    names = ("photograph", "level-1", "level-2")
    assert set(pictures) == {f"{stem}-{name}.jpg" for stem in ("b-x-y", "plain") for name in names} | {
        "plain-windows.jpg"
    }
    assert {load_image(path).size for name, path in pictures.items() if name.startswith("plain")} == {(220, 800)}


def test_equal_stems_are_numbered() -> None:
    paths = [Path("a/x.png"), Path("b/X.jpg"), Path("x-2.png"), Path("***.png")]
    assert run._stems(paths) == ["x", "x-2", "x-2-2", "image"]


def test_sample_photographs_are_found() -> None:
    if not (find_spec("sklearn") and find_spec("skimage")):
        pytest.skip("needs the extra demo")
    sizes = {path.name: load_image(path).size for path in sample_photographs()}
    assert sizes == {
        "china.jpg": (640, 427),
        "flower.jpg": (640, 427),
        "chelsea.png": (451, 300),
        "coffee.png": (600, 400),
    }


def test_missing_package_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'package sklearn .*pip install "\.\[demo\]"'):
        run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rejects_wrong_arguments_before_building_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(run, "imagenet_classifier")
    with pytest.raises(ValueError, match=r"levels\[1\]: expected at least 1 bin per side"):
        run_demo(tmp_path, ["x.png"], levels=(2, 0))
    with pytest.raises(TypeError, match=r"images: expected a sequence of files, got a single path; pass \['x\.png'\]"):
        run_demo(tmp_path, "x.png")
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        run_demo(tmp_path, [tmp_path / "missing.png"])


def test_windows_of_the_last_photograph_are_classified_in_one_pass(result: DemoResult, text: str) -> None:
    measured = result.regions
    assert measured.once.scale < measured.paper.scale == 688
    assert 1 <= measured.once.distinct <= measured.paper.distinct <= measured.windows <= 2000
    assert measured.once.seconds == measured.once.convolutions + measured.once.pooling + measured.once.head
    assert min(measured.once.seconds, measured.paper.seconds, measured.each, measured.search) > 0
    words = Page(text).words()
    assert f"Objects in {NAMES[-1]}: {measured.windows:,} windows, one pass" in words
    assert "Only 3 windows, spread over" in words
    assert "sppnet train detect DATA --out RUN" in words


def test_boxes_are_scaled_to_the_drawn_picture(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    timing = PassTiming(384, 1, 0.1, 0.1, 0.1)
    sizes = []

    def find(_: Classifier, image: Image.Image) -> Regions:
        sizes.append(image.size)
        box = torch.tensor([[0.25, 0.5, 0.75, 1.0]]) * torch.tensor([image.width, image.height]).repeat(2)
        detections = Detections(box, torch.tensor([0.9]), torch.tensor([967]))
        return Regions(detections, 1, False, 0.1, timing, timing, 0.1, 1)

    monkeypatch.setattr(run, "find_regions", find)
    for size in ((100, 50), (1600, 800)):
        picture = np.asarray(run._regions(model, Image.new("RGB", size))[1])
        assert picture.shape == (400, 800, 3)
        rows, columns = np.flatnonzero(picture[:, 599].any(1)), np.flatnonzero(picture[399].any(1))
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (200, 399, 200, 599)
    assert sizes == [(100, 50), (800, 400)]
