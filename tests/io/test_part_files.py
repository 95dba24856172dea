"""Shards of predictions: resuming, refusal of other jobs, and reading."""

import json
from pathlib import Path

import pytest

from sppnet.io import remote
from sppnet.io.part_files import Shards, parse_failure, read_predictions


@pytest.fixture
def parts(tmp_path: Path) -> Shards:
    return Shards(tmp_path / "out", ["a", "b", "c"], 2, {"model": "classifier"})


def write_part(parts: Shards, number: int, text: str) -> None:
    remote.write_text(text, remote.join(parts.folder, parts.file(number)))


def test_resumes_with_the_missing_files(parts: Shards) -> None:
    assert parts.open() == [0, 1]
    with pytest.raises(ValueError, match="are incomplete; run the same command again to resume"):
        read_predictions(parts.folder)
    write_part(parts, 1, '{"source": "c", "failure": "reason"}\n')
    Path(parts.folder, ".sppnet-123.part").mkdir()  # left by a killed process
    assert parts.open() == [0]
    write_part(parts, 0, '{"source": "a"}\n{"source": "b"}\n')
    assert parts.open() == []
    parts.close([("c", "reason")])
    assert [answer["source"] for answer in read_predictions(str(parts.folder))] == ["a", "b", "c"]
    assert remote.list_names(parts.folder) == {"index.json", "part-00000.jsonl", "part-00001.jsonl"}


def test_rejects_folders_of_other_jobs(parts: Shards) -> None:
    parts.open()
    for other in (
        Shards(parts.folder, ["a", "b"], 2, parts.settings),
        Shards(parts.folder, parts.names, 3, parts.settings),
        Shards(parts.folder, parts.names, 2, {"model": "detector"}),
    ):
        with pytest.raises(ValueError, match="contains results of other settings"):
            other.open()


def test_rejects_shards_without_an_index(parts: Shards) -> None:
    parts.open()
    write_part(parts, 1, "")
    Path(parts.folder, "index.json").unlink()
    with pytest.raises(ValueError, match=r"but no index\.json; choose another folder"):
        parts.open()


def test_rejects_empty_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard: expected at least 1 image, got 0"):
        Shards(tmp_path, ["a"], 0, {}).open()


def test_failure_lines_are_recognized() -> None:
    failure = {"source": "c", "failure": 'it is "failure": text'}
    assert parse_failure(json.dumps(failure)) == ("c", 'it is "failure": text')
    assert parse_failure('{"source": "\\"failure\\": "}') is None
