"""Metrics of each epoch in the run folder, as JSON Lines and CSV."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from sppnet.io.remote import write_text

METRICS, METRICS_CSV = "metrics.jsonl", "metrics.csv"


def write_metrics(folder: Path, row: dict[str, Any]) -> None:
    """Write the metrics of an epoch, which replace those of this and later epochs, which a resumed training repeats."""
    path = folder / METRICS
    previous = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [old for old in map(json.loads, previous) if old["epoch"] < row["epoch"]] + [row]
    write_text("".join(f"{json.dumps(values)}\n" for values in rows), path)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(name for values in rows for name in values)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(table.getvalue(), folder / METRICS_CSV)
