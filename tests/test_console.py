"""Console output: streams, progress bars, and silence of all processes but the first."""

import os
import subprocess
import sys

import pytest

from sppnet.console import console, results, track


def test_results_go_to_standard_output_and_messages_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    results.print("answer")
    console.print("note")
    assert capsys.readouterr() == ("answer\n", "note\n")


def test_track_yields_all_items_and_counts_done_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "images", total=5, done=2)) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert not out
    assert "images" in err
    assert "5/5" in err


@pytest.mark.parametrize(("rank", "expected"), [("0", "answer\n"), ("1", "")])
def test_only_the_first_process_prints(rank: str, expected: str) -> None:
    code = "from sppnet.console import console, results; results.print('answer'); console.print('note')"
    environment = {**os.environ, "RANK": rank}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert finished.stdout == expected
    assert bool(finished.stderr) == bool(expected)
