"""Metrics in the run folder."""

import csv
import json
from pathlib import Path

from sppnet.training.metrics import write_metrics


def test_both_files_have_the_same_rows_and_repeated_epochs_replace_earlier_ones(tmp_path: Path) -> None:
    for epoch, score in ((1, 0.5), (2, 0.25), (3, 0.125), (2, 0.75)):
        row = {"epoch": epoch, "size": None, "val_top1": score} | ({"val_other": 1.0} if score == 0.75 else {})
        write_metrics(tmp_path, row)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["val_top1"]) for line in lines] == [(1, 0.5), (2, 0.75)]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"epoch": "1", "size": "", "val_top1": "0.5", "val_other": ""},
        {"epoch": "2", "size": "", "val_top1": "0.75", "val_other": "1.0"},
    ]
