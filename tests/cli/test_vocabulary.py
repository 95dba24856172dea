"""One vocabulary: option names, their meanings and defaults are the same in all commands, and documented."""

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from sppnet.classify.options import ClassifyOptions
from sppnet.cli.main import load_command
from sppnet.cli.parser import options_of
from sppnet.cli.vocabulary import COMMANDS, RENAMED_COMMANDS, RENAMED_OPTIONS
from sppnet.detect.options import DetectOptions
from sppnet.detect.two_stage.options import TwoStageOptions
from sppnet.segment.options import SegmentOptions

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
COMMON = {"--help", "--quiet", "--log-file", "--debug", "--print_config", "--print-config"}


def options() -> dict[str, set[str]]:
    """Return the commands of each option, except the options that all commands have."""
    commands: dict[str, set[str]] = {}
    for name in COMMANDS:
        for option in load_command(name)[0].options_by_name().keys() - COMMON:
            commands.setdefault(option, set()).add(name)
    return commands


def documented() -> dict[str, set[str]]:
    """Return the commands of each option in the table of the page."""
    rows = re.findall(r"^\| `(--[a-z-]+)` \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: set(commands.strip().split(", ")) for name, _, commands in rows}


def test_the_table_lists_every_option_and_its_commands() -> None:
    assert documented() == options()


def test_the_page_shows_the_help_of_every_command() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^```\{command-help\} (.*)$", page, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("command", RENAMED_OPTIONS)
def test_renamed_options_name_existing_options_and_are_gone(command: str) -> None:
    present = load_command(command)[0].options_by_name()
    for old, new in RENAMED_OPTIONS[command].items():
        assert old not in present
        assert new in present


def test_renamed_commands_exist() -> None:
    assert set(RENAMED_COMMANDS.values()) <= COMMANDS.keys()
    assert not RENAMED_COMMANDS.keys() & COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text_without_python_types(command: str) -> None:
    for action in load_command(command)[0]._actions:
        text = action.help or ""
        assert text, action.dest
        assert not re.search(r"<class|typing\.|\bNone\b|<function", text), text


@pytest.mark.parametrize(
    ("command", "kind", "words"),
    [
        ("train classify", ClassifyOptions, []),
        ("train detect", TwoStageOptions, []),
        ("train detect", DetectOptions, ["--method", "spp"]),
        ("train segment", SegmentOptions, []),
    ],
)
def test_training_options_are_those_of_the_dataclass(command: str, kind: type[Any], words: list[str]) -> None:
    parser = load_command(command)[0]
    arguments = parser.parse_args(["data", "--out", "run", *words])
    assert options_of(kind, arguments) == kind()
    assert {field.name for field in dataclasses.fields(kind)} <= set(vars(arguments))
    for name, hint in get_type_hints(kind).items():
        choices = [
            choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)
        ]
        action = parser.options_by_name().get(f"--{name.replace('_', '-')}")
        assert action is None or not choices or all(str(choice) in str(action.metavar) for choice in choices)
