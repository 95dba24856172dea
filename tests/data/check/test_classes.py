"""Examples per class and split."""

from pathlib import Path

from sppnet.data.check.classes import ClassCount, class_problems, count_classes
from sppnet.data.check.items import CheckState, Source
from sppnet.data.formats.masks import LabelMap
from sppnet.data.formats.table import FORMATS
from sppnet.data.items import Box, Edges, Item, Part

KNOWN = {known.name: known for known in FORMATS}
EDGES: Edges = (0, 0, 5, 5)


def detection_state() -> CheckState:
    state = CheckState()
    objects = {"train": ("cat", "cat", "dog"), "val": ("dog", "dogs")}
    for split, names in objects.items():
        boxes = tuple(Box(name, EDGES, False, f"object {number}") for number, name in enumerate(names))
        item = Item(Path(f"{split}.png"), boxes=boxes, file=Path(f"{split}.json"))
        state.add(Source(KNOWN["coco"], split, Path(f"{split}.json"), ("cat", "dog", "gnu")), Part([item]))
    return state


def test_counts_images_boxes_and_stated_classes() -> None:
    state = detection_state()
    assert count_classes(list(state.entries.values()), [{}, {}], state.sources) == (
        ClassCount("cat", "train", 1, 2, 0),
        ClassCount("dog", "train", 1, 1, 0),
        ClassCount("gnu", "train", 0, 0, 0),
        ClassCount("cat", "val", 0, 0, 0),
        ClassCount("dog", "val", 1, 1, 0),
        ClassCount("dogs", "val", 1, 1, 0),
        ClassCount("gnu", "val", 0, 0, 0),
    )


def test_reports_classes_without_training_examples() -> None:
    state = detection_state()
    entries = list(state.entries.values())
    counts = count_classes(entries, [{}, {}], state.sources)
    assert [
        (problem.path.name, problem.kind, problem.reason)
        for problem in class_problems(entries, [{}, {}], counts, state.sources)
    ] == [
        ("train.json", "empty-class", "no object of gnu; training on this split cannot learn this class"),
        ("val.json", "untrained-class", "object 1: no training image has this class; did you mean dog?"),
    ]


def test_counts_and_compares_pixels() -> None:
    state, labels = CheckState(), LabelMap(("sky", "tree"), {0: 0, 1: 1})
    for split in ("train", "val"):
        item = Item(Path(f"{split}.png"), mask=Path(f"{split}_mask.png"))
        state.add(Source(KNOWN["camvid"], split, Path(split), labels.classes, labels), Part([item]))
    entries, pixels = list(state.entries.values()), [{"sky": 7, "tree": 0}, {"sky": 3, "tree": 4}]
    counts = count_classes(entries, pixels, state.sources)
    assert [(count.name, count.split, count.images, count.pixels) for count in counts] == [
        ("sky", "train", 1, 7),
        ("tree", "train", 0, 0),
        ("sky", "val", 1, 3),
        ("tree", "val", 1, 4),
    ]
    problems = list(class_problems(entries, pixels, counts, state.sources))
    assert [(problem.path.name, problem.kind) for problem in problems] == [
        ("train", "empty-class"),
        ("val", "untrained-class"),
    ]
