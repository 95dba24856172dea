"""Console output: streams, progress bars, log messages, and silence of all processes but the first."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sppnet.cli.console import line, message, reporting
from sppnet.progress import track

LONG = "word " * 100


def test_results_go_to_standard_output_and_messages_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    line("answer [bold]")
    message("note [bold]")
    assert capsys.readouterr() == ("answer [bold]\n", "note [bold]\n")


def test_shows_progress_and_log_messages_without_wrapping(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting():
        assert list(track(iter("abc"), "images", total=5, done=2)) == ["a", "b", "c"]
        logging.getLogger("sppnet.module").info(LONG)
    out, err = capsys.readouterr()
    assert not out
    assert "images" in err
    assert "5/5" in err
    assert f"{LONG}\n" in err


def test_quiet_shows_warnings_only_and_the_log_file_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger, file = logging.getLogger("sppnet.module"), tmp_path / "logs" / "run.log"
    with reporting(quiet=True, log_file=str(file)):
        assert list(track(iter("ab"), "images", total=2)) == ["a", "b"]
        logger.info("epoch 1")
        logger.warning("image skipped")
    assert capsys.readouterr().err == "image skipped\n"
    logger.warning("afterwards")
    lines = file.read_text().splitlines()
    assert [text.partition(" sppnet.module: ")[2] for text in lines] == ["epoch 1", "image skipped"]
    assert "INFO" in lines[0]
    assert "WARNING" in lines[1]


@pytest.mark.parametrize(("rank", "expected"), [("0", "answer\n"), ("1", "")])
def test_only_the_first_process_prints(rank: str, expected: str) -> None:
    code = "from sppnet.cli.console import line, message; line('answer'); message('note')"
    environment = {**os.environ, "RANK": rank}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert finished.stdout == expected
    assert bool(finished.stderr) == bool(expected)
