"""Demo: classify photographs of any size and write an HTML report that shows the prediction of each bin."""

import base64
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from string import Template

import torch
from PIL import Image

from sppnet.backbones.backbone import FeatureMap
from sppnet.classify.model import Classifier, imagenet_classifier
from sppnet.classify.predict import ClassificationResult
from sppnet.data.images import load_image, to_tensor
from sppnet.data.resize import Resize
from sppnet.demo.page import PAGE, SECTION, STYLE
from sppnet.demo.regions import Regions, find_regions, regions_section
from sppnet.detect.pictures import draw_detections
from sppnet.inference.drawing import bin_boxes, draw_bins
from sppnet.inference.results import Detections
from sppnet.ops.levels import count_bins
from sppnet.ops.pyramid import pyramid_pool
from sppnet.progress import track

_SIDE = 800  # longest side of the pictures in the report, pixels
_SAMPLES = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "skimage": ("data/chelsea.png", "data/coffee.png"),
}
_CREDITS = (
    "Photographs: china.jpg by danielbuechele and flower.jpg by vultilion, both CC BY 2.0, from scikit-learn;"
    " chelsea.png by Stefan van der Walt and coffee.png by Rachel Michetti, both CC0, from scikit-image. All are"
    " resized here, and converted to gray where bins are drawn over them."
)

_HEADS = ("image", "pixels", "map", "vector", "prediction", "ms")

Top = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class DemoResult:
    """Output of the demo.

    Attributes:
        report: path of the self-contained HTML page.
        answers: prediction for each photograph at its own size.
        regions: classified windows of the last photograph.
    """

    report: Path
    answers: tuple[ClassificationResult, ...]
    regions: Regions


@dataclass(frozen=True)
class _View:
    """Result of one forward pass of an image."""

    name: str
    size: tuple[int, int]
    features: FeatureMap
    vector: int
    top: Top
    milliseconds: float


def run_demo(out: Path, images: Sequence[str | Path] = (), levels: Sequence[int] = (6, 3, 2, 1)) -> DemoResult:
    """Classify photographs at their own and at other sizes with the embedded network and write a report.

    Args:
        out: output folder for ``index.html`` and its pictures; existing files are overwritten.
        images: image files; if empty, four photographs from scikit-learn and scikit-image.
        levels: pyramid levels, each n >= 1 for n x n bins; each photograph gets one picture per level.

    Raises:
        sppnet.ImageError: an image cannot be read.
        TypeError: `images` is a single path.
        ValueError: a level is below 1, or `images` is empty and scikit-learn or scikit-image is not installed.
    """
    start = time.perf_counter()
    if isinstance(images, str | Path):
        raise TypeError(f"images: expected a sequence of files, got a single path; pass [{str(images)!r}]")
    bins = count_bins(levels)
    paths = [Path(image) for image in images] or sample_photographs()
    photographs = [load_image(path) for path in paths]
    out.mkdir(parents=True, exist_ok=True)
    answers, sections = [], []
    with ExitStack() as stack:
        # Images this small gain little from more threads, which contend for shared cores.
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        model = imagenet_classifier()
        stack.enter_context(torch.inference_mode())
        jobs = zip(paths, _stems(paths), photographs, strict=True)
        for path, stem, photograph in track(jobs, "photographs", len(paths)):
            answer, section = _photograph(model, path, photograph, out / stem, levels)
            answers.append(answer)
            sections.append(section)
        ((regions, picture),) = (_regions(model, last) for last in track(photographs[-1:], "windows", 1))
        file = _save(picture, out / f"{_stems(paths)[-1]}-windows.jpg")
        sections.append(regions_section(regions, model.config.classes, paths[-1].name, file))
    page = Template(PAGE).substitute(
        style=STYLE,
        levels=", ".join(map(str, levels)),
        bins=f"{bins:,}",
        channels=f"{model.backbone.channels:,}",
        length=f"{bins * model.backbone.channels:,}",
        side=model.backbone.side,
        sections="\n".join(sections),
        credits="" if images else f"<p>{escape(_CREDITS)}</p>",
        versions=", ".join(f"{name} {escape(version(name))}" for name in ("sppnet", "torch", "timm")),
        seconds=f"{time.perf_counter() - start:.1f}",
    )
    report = out / "index.html"
    report.write_text(page, encoding="utf-8", errors="replace")  # file names need not be Unicode
    return DemoResult(report, tuple(answers), regions)


def sample_photographs() -> list[Path]:
    """Return the paths of the four photographs that ship with scikit-learn and scikit-image.

    Raises:
        ValueError: a package or one of its photographs is missing.
    """
    files = []
    for package, names in _SAMPLES.items():
        # Only their files are needed; importing the packages takes seconds.
        spec = find_spec(package)
        folders = list(spec.submodule_search_locations or []) if spec else []
        found = [Path(folder, name) for name in names for folder in folders if Path(folder, name).is_file()]
        if len(found) != len(names):
            raise ValueError(
                f"images: the default photographs {', '.join(names)} come with the package {package} and are not"
                ' installed; run pip install ".[demo]" or pass image files of your own'
            )
        files += found
    return files


def _stems(paths: Sequence[Path]) -> list[str]:
    """Return a file name stem for each photograph, unique on case-insensitive file systems too."""
    stems: list[str] = []
    for path in paths:
        stem = base = re.sub(r"[^\w-]+", "-", path.stem).strip("-").lower()[:60] or "image"
        number = 1
        while stem in stems:
            number += 1
            stem = f"{base}-{number}"
        stems.append(stem)
    return stems


def _photograph(
    model: Classifier, path: Path, photograph: Image.Image, base: Path, levels: Sequence[int]
) -> tuple[ClassificationResult, str]:
    """Classify a photograph and render its section of the report; picture names start with `base`."""
    policy = Resize("native", max_pixels=model.config.max_pixels)
    native = policy(photograph, model.backbone.interpolation)
    center = Resize("center-crop", model.backbone.side)(photograph, model.backbone.interpolation)
    others = (
        ("half size", native.resize((max(1, native.width // 2), max(1, native.height // 2)), Image.Resampling.BICUBIC)),
        ("warped to an odd size", native.resize((225, 321), Image.Resampling.BICUBIC)),
        ("warped tall", native.resize((160, 400), Image.Resampling.BICUBIC)),
        ("warped flat", native.resize((400, 160), Image.Resampling.BICUBIC)),
        ("center crop", center),
    )
    shrunk = native.size != photograph.size
    views = [_view(model, "own size, reduced" if shrunk else "own size", native, levels)]
    views += [_view(model, name, image, levels) for name, image in others]
    top, size = views[0].top, (photograph.height, photograph.width)
    answer = ClassificationResult(str(path), size, *top[0], top, views[0].size)
    canvas = _canvas(photograph)
    pictures, highest = _pictures(model, canvas, answer, views[0].features, base, levels)
    section = Template(SECTION).substitute(
        name=escape(path.name),
        size=_sides(size),
        shrunk=f" The network's input is reduced to {_sides(views[0].size)}, its pixel limit." if shrunk else "",
        photograph=_save(canvas, base.with_name(f"{base.name}-photograph.jpg")),
        alt=escape(f"The photograph {path.name}"),
        native=_top_classes(f"At {'' if shrunk else 'its own size, '}{_sides(views[0].size)}", top),
        center=_top_classes(f"Center crop at the training size, {_sides(views[-1].size)}", views[-1].top),
        label=escape(answer.label),
        highest=_percent(highest),
        pictures="\n".join(pictures),
        heads="".join(f'<th scope="col">{head}</th>' for head in _HEADS),
        rows="\n".join(_row(view) for view in views),
    )
    return answer, section


def _regions(model: Classifier, photograph: Image.Image) -> tuple[Regions, Image.Image]:
    """Find the most likely objects in a photograph and draw them."""
    canvas = _canvas(photograph)
    # Small photographs are enlarged for drawing only: the network gains nothing from interpolated pixels.
    source = canvas if max(photograph.size) > _SIDE else photograph
    regions = find_regions(model, source)
    boxes = regions.found.boxes * (max(canvas.size) / max(source.size))
    # Renumber the labels so that these few classes get the most distinct colors.
    present, labels = regions.found.labels.unique(return_inverse=True)
    names = [model.config.classes[label] for label in present.tolist()]
    return regions, draw_detections(canvas, Detections(boxes, regions.found.scores, labels), names)


def _canvas(photograph: Image.Image) -> Image.Image:
    """Resize to a fixed longest side, so that class names are readable on small photographs too."""
    width, height = (max(1, round(side * _SIDE / max(photograph.size))) for side in photograph.size)
    return photograph.resize((width, height), Image.Resampling.BICUBIC)


def _view(model: Classifier, name: str, image: Image.Image, levels: Sequence[int]) -> _View:
    """Run the network on the image without resizing; only the forward pass is timed."""
    x = to_tensor(image, model.backbone.mean, model.backbone.std)[None]
    start = time.perf_counter()
    features: FeatureMap = model.backbone(x)
    vector = pyramid_pool(features.data, levels)
    probabilities = model.head(model.pool(features.data)).softmax(1)[0]
    milliseconds = 1000 * (time.perf_counter() - start)
    scores, order = probabilities.topk(5)
    top = tuple((model.config.classes[i], score) for i, score in zip(order.tolist(), scores.tolist(), strict=True))
    return _View(name, (image.height, image.width), features, vector.shape[1], top, milliseconds)


def _pictures(
    model: Classifier,
    canvas: Image.Image,
    answer: ClassificationResult,
    features: FeatureMap,
    base: Path,
    levels: Sequence[int],
) -> tuple[list[str], float]:
    """Render one figure per level; also return the probability drawn with the strongest tint."""
    index = model.config.classes.index(answer.label)
    vectors = [pyramid_pool(features.data, [n], reduce="avg").reshape(-1, n * n).T for n in levels]
    predictions = [model.head(bins).softmax(1) for bins in vectors]
    highest = max(float(probabilities[:, index].max()) for probabilities in predictions)
    figures = []
    for n, bins, probabilities in zip(levels, vectors, predictions, strict=True):
        values = (probabilities[:, index] / highest).clamp(0, 1).tolist()
        winners: list[int] = probabilities.argmax(1).tolist()
        boxes = bin_boxes(features, (canvas.height, canvas.width), answer.network_size, n)
        picture = draw_bins(canvas, boxes, values=values, labels=[model.config.classes[i] for i in winners])
        source = _save(picture, base.with_name(f"{base.name}-level-{n}.jpg"))
        score, best = (part.item() for part in model.head(bins.mean(0)).softmax(0).max(0))
        count = f"{winners.count(index)} of {n * n} bins predict {answer.label} on their own"
        title, caption = "Level 1: the whole map", f"Prediction for the photograph: {answer.label}"
        if n > 1:
            title = f"Level {n}: {n} × {n} bins"
            caption = f"{count}; the average of all {n * n} predicts {model.config.classes[best]}"
        alt = f"{Path(answer.source).name} with the bins of level {n}: {count}"
        figures.append(
            f'<figure><img src="{source}" alt="{escape(alt)}"><figcaption><b>{title}.</b>'
            f" {escape(caption)} ({_percent(score)}).</figcaption></figure>"
        )
    return figures, highest


def _save(image: Image.Image, file: Path) -> str:
    """Write the file and return it as a data URI."""
    image.save(file, quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode("ascii")


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f}%"


def _top_classes(title: str, top: Top) -> str:
    items = "".join(
        f'<li><span>{escape(label)}</span> <b>{_percent(score)}</b><i style="width:{100 * score:.1f}%"></i></li>'
        for label, score in top
    )
    return f"<div><h3>{escape(title)}</h3><ol>{items}</ol></div>"


def _row(view: _View) -> str:
    label, score = view.top[0]
    rows, columns = view.features.data.shape[2:]
    prediction = f"{escape(label)}, {_percent(score)}"
    cells = (_sides(view.size), f"{rows} × {columns}", f"{view.vector:,}", prediction, f"{view.milliseconds:.0f}")
    return f'<tr><th scope="row">{escape(view.name)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
