"""Writers of box files."""

import json
from pathlib import Path
from typing import Any


def write_csv(folder: Path, text: str) -> Path:
    (folder / "boxes.csv").write_text(text, encoding="utf-8")
    return folder / "boxes.csv"


def write_jsonl(folder: Path, *entries: object) -> Path:
    text = "".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries)
    (folder / "boxes.jsonl").write_text(text, encoding="utf-8")
    return folder / "boxes.jsonl"


def write_coco(folder: Path, annotations: list[dict[str, Any]], *names: str) -> Path:
    entries = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    (folder / "boxes.json").write_text(json.dumps({"images": entries, "annotations": annotations}))
    return folder / "boxes.json"
