"""Parsers of the commands: options from dataclasses, value types, and messages with the nearest legal argument."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from sppnet.cli.parser import CommandParser, OptionValueError, levels, numbers, optional, options_of
from sppnet.ops.levels import Level


@dataclass(frozen=True)
class Options:
    levels: tuple[Level, ...] = (3, 2, 1)
    head: Literal["linear", "fc"] | None = None
    batch: int = 32
    lr: float | None = None
    mirror: bool = True
    resume: bool = False


@pytest.fixture
def parser() -> CommandParser:
    parser = CommandParser("train detect", "Train.")
    parser.option("data", "data", "folder")
    parser.option("data", "--config", "YAML file", action="config")
    parser.fields(
        "training",
        Options(),
        levels=("pyramid levels", levels),
        head="head",
        batch="images",
        lr="rate",
        mirror="mirrored images",
        resume="continue 100 %",
    )
    parser.finish()
    return parser


def test_options_have_the_names_types_and_defaults_of_the_dataclass(parser: CommandParser) -> None:
    assert options_of(Options, parser.parse_args(["x"])) == Options()
    arguments = [
        "x",
        "--levels",
        "2x3,1",
        "--head",
        "fc",
        "--batch",
        "4",
        "--lr",
        "0.1",
        "--mirror",
        "false",
        "--resume",
    ]
    assert options_of(Options, parser.parse_args(arguments)) == Options(((2, 3), 1), "fc", 4, 0.1, False, True)


def test_reads_options_from_a_yaml_file(parser: CommandParser, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("levels: [6, [2, 3]]\nbatch: 4\n")
    assert options_of(Options, parser.parse_args(["x", "--config", str(file)])) == Options((6, (2, 3)), batch=4)


def test_help_shows_groups_defaults_and_choices(parser: CommandParser) -> None:
    text = " ".join(parser.format_help().split())
    for part in ("data:", "training:", "logging:", "pyramid levels; default: 3,2,1", "images; default: 32", "100 %"):
        assert part in text
    assert "mirrored images; default: true" in text
    assert "default: None" not in text
    assert "default: false" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--levls", "3"], "expected an option of sppnet train detect, got --levls; did you mean --levels?"),
        (["x", "--rule", "paper"], "--rule is now called --cell-rule"),
        (["x", "--head", "lineer"], "--head: expected one of linear, fc, got 'lineer'; did you mean linear?"),
        (["x", "--batch", "many"], "--batch: expected an integer, got 'many'"),
        (["x", "--lr", "high"], "--lr: expected a number, got 'high'"),
        (["x", "--levels", "a"], "--levels: expected numbers such as 6,3,2,1 or 2x3,1, got 'a'"),
        (["x", "y"], "expected no further arguments, got y"),
        (["x", "--bat", "3"], "got --bat; did you mean --batch?"),
        ([], "expected the arguments data, got none"),
        (
            ["x", "--config", "{}/a.yaml"],
            "bach: expected an option of sppnet train detect in the YAML file, got 'bach'",
        ),
        (["x", "--config", "{}/a.yaml"], "; did you mean batch?"),
        (["x", "--config", "{}/b.yaml"], "--levels: expected numbers such as 6,3,2,1 or 2x3,1, got 'a'"),
        (["x", "--config", "{}/c.yaml"], "--resume: expected true or false, got 7"),
        (["x", "--config", "{}/none.yaml"], "--config: File does not exist"),
    ],
)
def test_wrong_arguments_end_in_one_line_and_exit_code_2(
    parser: CommandParser, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("bach: 3\n")
    (tmp_path / "b.yaml").write_text("levels: a\n")
    (tmp_path / "c.yaml").write_text("resume: 7\n")
    with pytest.raises(SystemExit) as error:
        parser.parse_args([text.format(tmp_path) for text in arguments])
    assert error.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("sppnet train detect: ")
    assert message in lines[0]
    assert lines[1:] == ["See sppnet train detect --help"]


def test_parses_levels() -> None:
    assert levels("6,3,2,1") == (6, 3, 2, 1)
    assert levels("(2x3, 1)") == ((2, 3), 1)
    assert levels([3, [2, 1]]) == (3, (2, 1))
    for text in ("a,b", "", "x3", "-1"):
        with pytest.raises(OptionValueError, match="expected numbers such as 6,3,2,1 or 2x3,1"):
            levels(text)


def test_parses_numbers() -> None:
    assert numbers()("4096,1024") == (4096, 1024)
    assert numbers(float, 0)("0.75,1") == (0.75, 1.0)
    assert numbers()([3, 4]) == (3, 4)
    assert numbers(none=())("none") == ()
    assert optional(numbers())(None) is None
    for text in ("", "1,", "0", "1.5", "nan"):
        with pytest.raises(OptionValueError, match=f"expected comma-separated numbers of at least 1, got '{text}'"):
            numbers()(text)
    with pytest.raises(OptionValueError, match="or none, got 'all'"):
        numbers(none=())("all")
    with pytest.raises(OptionValueError, match="at least 0"):
        numbers(float, 0)("1,nan")
