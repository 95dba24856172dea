from pathlib import Path

import pytest
import torch

from sppnet.cli.main import run
from sppnet.training.cache import open_cache


def test_lists_and_clears_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_cache(tmp_path / "vectors", {"backbone": "[zf5]", "levels": [2, 1]}, 1e9) as cache:
        for digest in ("ab" * 32, "cd" * 32):
            cache.write(digest, {"vector": torch.zeros(1000)})
    assert run(["cache", "list", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"vectors/{cache.folder.name}" in shown
    assert "backbone [zf5], levels [2, 1]" in shown
    assert shown.splitlines()[-1].startswith("8.2 kB in")
    assert run(["cache", "clear", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"deleted 2 files with 8.2 kB from {tmp_path}\n"
    assert list(tmp_path.iterdir()) == []
    assert run(["cache", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"0 B in {tmp_path}\n"


@pytest.mark.parametrize("command", ["list", "clear"])
def test_rejects_a_missing_folder(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", command, str(tmp_path / "missing")]) == 2
    assert "folder: expected an existing folder, got" in capsys.readouterr().err
