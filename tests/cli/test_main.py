"""Exit codes and messages of the command line."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.cli import main as cli_main
from sppnet.cli.main import load_command, main, run
from sppnet.cli.vocabulary import COMMANDS
from sppnet.errors import ImageError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "classify", "{}/nowhere", "--out", "{}/r"], "no data set at"),
        (
            ["train", "classify", "{data}/train/red", "--out", "{}/r"],
            "train/red, a folder of 4 images, 0 other files and 0 folders",
        ),
        (["train", "classify", "{data}", "--out", "{}/r", "--backbone", "resnet81"], "got 'resnet81'; did you mean "),
        (
            ["train", "classify", "{data}", "--out", "{}/r", "--backbone", "resnet18"],
            "weights: expected 'hub' (download from timm)",
        ),
        (["train", "classify", "{data}", "--out", "{}/r", "--levels", "2,0"], "smallest level is 1"),
        (["train", "classify", "{data}", "--out", "{run}"], "already contains a training"),
        (["evaluate", "{}/nowhere", "{data}"], "no such folder"),
        (["evaluate", "{data}", "{data}"], "it has no run.json"),
        (["evaluate", "{run}", "{data}", "--split", "vla"], "split: expected one of train, test"),
        (["evaluate", "{run}", "{data}", "--resize", "center-crp"], "did you mean center-crop"),
        (["predict", "{run}", "{data}", "--views", "7"], "views: expected one of full, 10, 18, 96"),
        (["predict", "{run}", "{data}", "--views", "10", "--resize", "native"], "which have fixed sizes, got native"),
        (["evaluate", "{run}", "{data}", "--compare", "native,wrap"], "did you mean warp"),
        (["predict", "{run}", "{data}", "--device", "abacus"], "device: expected an available device, got 'abacus'"),
        (["predict", "{run}", "{data}", "--batch", "0"], "batch: expected at least 1"),
    ],
)
def test_invalid_arguments_exit_with_2(
    arguments: list[str], message: str, trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"run": str(trained), "data": str(data)}
    assert run([text.format(tmp_path, **paths) for text in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert not captured.out
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_standard_output_prints_no_traceback(trained: Path, data: Path, unbuffered: str) -> None:
    command = [sys.executable, "-m", "sppnet", "predict", str(trained), str(data / "test")]
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Error" not in process.stderr.read()
    assert process.returncode == 1


def test_warnings_of_pillow_are_not_printed(trained: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*" + b"\xff" * 60_000)
    command = [sys.executable, "-m", "sppnet", "predict", str(trained), str(tmp_path / "a.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "a.jpg\t" in done.stdout
    assert "EXIF" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "sppnet: expected a command, one of demo, check, convert, train classify, "),
        (["trian"], "got trian; did you mean train?"),
        (
            ["train", "classfy", "x", "--out", "y"],
            "one of classify, detect, segment, got classfy; did you mean classify?",
        ),
        (["compare-sizes", "x"], "got compare-sizes; did you mean compare sizes?"),
        (["predict"], "sppnet predict: expected the arguments run, got none"),
        (["evaluate", "a", "b", "--splt", "val"], "got --splt; did you mean --split"),
        (["evaluate", "a", "b", "--sizes", "160"], "--sizes is now called --compare"),
        (["train", "classify"], "sppnet train classify: expected the arguments data, --out, got none"),
        (["predict", "a", "b", "--workers", "x"], "--workers: expected an integer, got 'x'"),
    ],
)
def test_wrong_commands_and_options_exit_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        run(arguments)
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out


def test_help_lists_all_commands_and_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert run(arguments) == 0
        text = capsys.readouterr().out
        assert all(f"  {name} " in text for name in COMMANDS)
    assert run(["train", "--help"]) == 0
    assert "train segment" in capsys.readouterr().out
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sppnet 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_parsers_start_without_torch(name: str) -> None:
    code = (
        "import sys; from sppnet.cli.main import load_command; load_command(sys.argv[1])[0].format_help();"
        "sys.exit(', '.join(sys.modules.keys() & {'torch', 'torchvision', 'timm', 'numpy', 'numba'}) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def raising(error: BaseException, *, foreseen: bool) -> int:
    """Raise an error, as the package does or as a library does."""
    if foreseen:
        exec(compile("raise error", cli_main.__file__, "exec"), {"error": error})
    raise error


@pytest.mark.parametrize(
    ("error", "foreseen", "code", "message"),
    [
        (ValueError("levels: expected 1, got 0"), True, 2, "levels: expected 1, got 0"),
        (ImageError("a.jpg", "file is empty"), True, 1, "a.jpg: file is empty"),
        (RuntimeError("the loss is nan"), True, 1, "the loss is nan"),
        (
            ValueError("bad shape"),
            False,
            1,
            "unexpected ValueError: bad shape; run again with --debug for the traceback",
        ),
        (KeyError("x"), True, 1, "'x'"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            False,
            1,
            "/x/y: No space left on device; free some",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), False, 1, "/x: Permission denied; check the perm"),
        (MemoryError(), False, 1, "not enough memory"),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), False, 1, 'pip install ".[export]"'),
        (ModuleNotFoundError("Parquet files need pyarrow", name="pyarrow"), True, 1, "Parquet files need pyarrow"),
        (KeyboardInterrupt(), False, 130, "interrupted; OUT keeps the finished parts; run the same command again"),
    ],
)
def test_errors_end_in_one_line(
    error: BaseException,
    foreseen: bool,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser, _ = load_command("compare sizes")
    monkeypatch.setattr(cli_main, "load_command", lambda _: (parser, lambda _: raising(error, foreseen=foreseen)))
    assert run(["compare", "sizes", "data", "--out", "OUT"]) == code
    text = capsys.readouterr().err
    assert text.startswith("sppnet: ")
    assert message in text
    assert text.count("\n") == 1
    assert run(["compare", "sizes", "data", "--out", "OUT", "--debug"]) == code
    assert ("Traceback" in capsys.readouterr().err) == (code != cli_main.INTERRUPTED)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_says_what_was_saved_and_exits_with_130(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (400, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    command = [sys.executable, "-m", "sppnet", "predict", "imagenet", str(tmp_path), "--batch", "1", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "sppnet: interrupted; results printed so far are complete"
    assert "Traceback" not in errors
    assert len(rest.splitlines()) < 39


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("OTHER", "1", "1000"), ("OMP_WAIT_POLICY", "active", None), ("GOMP_SPINCOUNT", "7", "7")],
)
def test_threads_of_operators_wait_shortly_unless_the_environment_says_otherwise(
    name: str, value: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(variable, "")  # restored after the test, also if main sets it
        monkeypatch.delenv(variable)
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_torch_is_imported_after_the_environment_is_set() -> None:
    code = "import sys, sppnet.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
