"""Index of results in several files: settings, completion, damaged files."""

import json
from pathlib import Path
from typing import Any

import pytest

from sppnet.io.shards import Index, list_shards


def test_folder_is_resumed_with_equal_settings_only(tmp_path: Path) -> None:
    index = Index(settings={"levels": (2, 1), "rule": "paper"})
    assert not index.is_in(tmp_path / "out")
    index.write(tmp_path / "out")
    assert Index(settings={"rule": "paper", "levels": [2, 1]}).is_in(tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"out: .*out contains results of other settings: rule paper, not released; ch"
    ):
        Index(settings={"levels": (2, 1), "rule": "released"}).is_in(tmp_path / "out")


def test_only_complete_results_are_listed(tmp_path: Path) -> None:
    index = Index(settings={})
    index.write(tmp_path)
    with pytest.raises(ValueError, match="are incomplete; run the same command again to resume"):
        list_shards(tmp_path)
    (tmp_path / ".sppnet-1.part").mkdir()  # left by a killed process
    index.finish(tmp_path, [{"file": "1"}, {"file": "0"}], [{"image": "\udcff\u00fc.png", "reason": "damaged"}])
    assert list_shards(str(tmp_path)) == [tmp_path / "1", tmp_path / "0"]
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
    content = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    assert list(content) == ["format", "complete", "settings", "shards", "failures"]
    assert content["failures"] == [{"image": "\udcff\u00fc.png", "reason": "damaged"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"index\.json is damaged"),
        ("[]", r"index\.json is damaged"),
        ({"format": 1}, "required field `settings`"),
        ({"format": 2, "settings": {}}, r"index\.json: expected format 1, got 2"),
        ({"settings": {}, "parts": []}, "unknown fields: parts"),
    ],
)
def test_rejects_damaged_indexes_and_other_formats(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "index.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        list_shards(tmp_path)
    with pytest.raises(ValueError, match=message):
        Index(settings={}).is_in(tmp_path)
