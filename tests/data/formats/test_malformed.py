"""Malformed VOC, COCO and YOLO files: training and `sppnet check` agree, and all errors are named problems."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sppnet.data.check.run import check_data
from sppnet.data.formats.detection import read_detection
from sppnet.data.items import FATAL
from tests.helpers.annotation_files import (
    YOLO_CONFIG,
    coco_document,
    object_xml,
    write_annotation,
    write_image,
    write_json,
    write_list,
    write_yolo,
)

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 1e-6, 0.5, -3.5, 1e300, 10**400, float("nan"), float("inf"), "", " ", "0", "7",
    "x" * 5000, "\0", "\ud800", "a\\b", "..", "/", [], [1], [1, 2, 3, 4], {}, {"id": 7}, [[[[[[[[[]]]]]]]]],
]  # fmt: skip
TOKENS = [
    "", " ", "0", "-1", "2", "0.5", "1e-9", "-0.5", "3", "1e999", "nan", "-inf", "0x1", "1_0", "\u0663", "x", "\0",
    "9" * 5000, "<", "&amp;", "&x;", "]]>", "\ufeff", "\r", "\u2028", "\x1b[31m", "\\", "/", "'", '"', ": ", "- ", "#",
    "*a", "&a", "!!int", "{", "[", "}", "%", "\t",
]  # fmt: skip


NUMBERS = ["0", "1", "2", "0.1", "0.9", "1.3", "20", "41", "-3", "1e-9", "-0.2", "00", "1.0", "9", "2.1", "nan", " 1 "]


def mutate_text(text: str, rng: random.Random) -> bytes:
    """Replace a number, replace, remove or repeat parts of a text, or damage its bytes."""
    numbers = list(re.finditer(r"[\d.]+", text))
    if rng.randrange(2) and numbers:
        place = rng.choice(numbers)
        return (text[: place.start()] + rng.choice(NUMBERS) + text[place.end() :]).encode()
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice((0, 1, 1, 3, 20)))
        text = text[:start] + rng.choice([*TOKENS, text[start:end] * 2]) + text[end:]
    content = text.encode("utf-8", "surrogatepass")
    match rng.randrange(10):
        case 0:
            return content[: rng.randrange(len(content) + 1)]
        case 1:
            return content.replace(b"0", b"\xff", 1)
        case 2:
            return text.encode("utf-16", "surrogatepass")
        case _:
            return content


def mutate_values(document: Any, rng: random.Random) -> Any:
    """Replace, remove or repeat a random value of a JSON document."""
    places: list[tuple[Any, Any]] = []

    def visit(value: Any) -> None:
        for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            visit(value[key])

    visit(document)
    parent, key = rng.choice(places)
    action = rng.randrange(6)
    if action == 0 and isinstance(parent, dict):
        del parent[key]
    elif action == 1 and isinstance(parent, list):
        parent.append(parent[key])
    else:
        parent[key] = rng.choice(VALUES)
    return document


def voc(root: Path, rng: random.Random) -> None:
    write_annotation(root, "a", object_xml("cat", 1, 1, 9, 9), object_xml("dog", 3, 3, 20, 20), size=(30, 40))
    write_annotation(root, "b", object_xml("dog", 2, 2, 8, 8, rest="<difficult>1</difficult>"), size=(30, 40))
    write_list(root, "train", "a\nb 1\n")
    file = root / rng.choice(["Annotations/a.xml", "Annotations/a.xml", "ImageSets/Main/train.txt"])
    file.write_bytes(mutate_text(file.read_text(), rng))


def coco(root: Path, rng: random.Random) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_image(root / "images" / name)
    document = coco_document()
    for _ in range(rng.randint(1, 2)):
        document = mutate_values(document, rng)
    file = write_json(root / "annotations/train.json", document)
    if rng.randrange(4) == 0:
        file.write_bytes(mutate_text(json.dumps(coco_document()), rng))


def yolo(root: Path, rng: random.Random) -> None:
    write_yolo(root, "0 0.5 0.5 0.5 0.2", "1 0.1 0.1 0.4 0.1 0.4 0.5")
    file = root / rng.choice(["data.yaml", "labels/train/a.txt", "list.txt"])
    if file.name == "list.txt":
        (root / "data.yaml").write_text(YOLO_CONFIG.replace("images/train", "list.txt"))
        file.write_text("images/train/a.jpg\n./images/train/b.jpg\n")
    file.write_bytes(mutate_text(file.read_text(), rng))


@pytest.mark.parametrize("write", [voc, coco, yolo])
def test_check_and_training_agree(tmp_path: Path, write: Callable[[Path, random.Random], None]) -> None:
    verdicts = []
    for seed in range(150):
        root = tmp_path / str(seed)
        write(root, random.Random(seed))
        config = root / "data.yaml" if write is yolo else root
        try:
            fatal = [str(problem) for problem in check_data(config).problems if problem.kind in FATAL]
        except ValueError as error:
            fatal = [str(error)]
        splits = ["train"] if write is not yolo else [None, "train"]
        errors = []
        for split in splits:
            try:
                read_detection(config, split)
            except ValueError as error:
                errors.append(str(error))
        raised = [error for error in errors if not error.startswith("split: ")]
        assert bool(raised) == bool(fatal), (seed, raised, fatal)
        assert not raised or any(text in raised[0] for text in fatal), (seed, raised, fatal)
        assert not raised or raised[0].isprintable(), seed
        verdicts.append(bool(raised))
    assert 30 < sum(verdicts) < 135
