"""Argument parsers of the commands: options that mirror a dataclass, types of option values, and error messages."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from sppnet.cli.vocabulary import RENAMED_OPTIONS
from sppnet.errors import did_you_mean
from sppnet.ops.levels import Level

T = TypeVar("T")
Number = TypeVar("Number", int, float)

_LAST_GROUPS = ("output", "hardware", "logging")


class OptionValueError(argparse.ArgumentTypeError, ValueError):
    """An option value that cannot be parsed; argparse and jsonargparse show messages of different base classes."""


class CommandParser(ArgumentParser):
    """Parser of one command; a wrong argument ends in one line with the nearest legal one, and exit code 2.

    Args:
        command: name of the command, such as ``train classify``.
        description: what the command does, shown by ``--help``.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"sppnet {command}",
            description=description,
            formatter_class=argparse.HelpFormatter,
            allow_abbrev=False,
        )
        self.command = command
        self._negative_number_matcher = re.compile(r"-[\d.]+(,-?[\d.]+)*$")  # also lists such as -1,-2

    def group(self, title: str) -> Any:
        """Return the group of options with this title in ``--help``; it is created at its first use."""
        groups = {group.title: group for group in self._action_groups}
        return groups.get(title) or self.add_argument_group(title)

    def option(self, title: str, name: str, text: str, default: Any = None, **settings: Any) -> None:
        """Add an option; its default is appended to the help text unless the text describes it.

        Args:
            title: title of the group.
            name: name of the option with dashes, or of a positional argument without.
            text: help text.
            default: default value.
            settings: further arguments of :meth:`argparse.ArgumentParser.add_argument`.
        """
        if default is not None and default is not False and "default:" not in text:
            text = f"{text}; default: {_as_text(default)}"
        if name.startswith("-") and settings.get("action") != "config":
            settings["default"] = default
        # jsonargparse adds --print_config for a --config of the parser, not of a group.
        target = self if settings.get("action") == "config" else self.group(title)
        target.add_argument(name, help=text.replace("%", "%%"), **settings)

    def fields(self, title: str, options: Any, **texts: str | tuple[str, Callable[[Any], Any]]) -> None:
        """Add options for fields of a dataclass, with their names, types, choices and defaults.

        Args:
            title: title of the group.
            options: instance of the dataclass that holds the defaults, or a tuple of instances of alternative
                dataclasses, of which another option chooses one. An option that one of them lacks, or that has another
                default there, is None in the arguments if it is not given.
            texts: help text of each field, or (help text, function that parses the value).
        """
        alternatives = options if isinstance(options, tuple) else (options,)
        for name, entry in texts.items():
            text, parse = (entry, None) if isinstance(entry, str) else entry
            owners = [part for part in alternatives if hasattr(part, name)]
            defaults = [getattr(part, name) for part in owners]
            default, hint = defaults[0], get_type_hints(type(owners[0]))[name]
            if len(owners) < len(alternatives) or any(value != default for value in defaults):
                if "default:" not in text:
                    values = [_as_text(value) for value in defaults if value is not None]
                    text += f"; default: {', else '.join(values)}" if values else ""
                default, hint, parse = None, hint | None, parse and optional(parse)
            option = "--" + name.replace("_", "-")
            if hint is bool and default is False:
                self.option(title, option, text, default, action="store_true")
            else:
                choices = [str(choice) for choice in _choices(hint)]
                if bool in get_args(hint):  # optional
                    choices = ["true", "false"]
                metavar = {"metavar": f"{{{','.join(choices)}}}"} if choices and not parse else {}
                self.option(title, option, text, default, type=parse or hint, **metavar)

    def finish(self) -> None:
        """Add the options that all commands have, and a short usage line."""
        groups: list[Any] = self._action_groups  # type: ignore[assignment]
        groups.sort(key=lambda group: group.title in _LAST_GROUPS and 1 + _LAST_GROUPS.index(group.title))
        required = [action for action in self._actions if action.required or not action.option_strings]
        words = [" ".join([*action.option_strings, str(action.metavar or action.dest)]) for action in required]
        self.usage = " ".join([self.prog, *words, "[OPTIONS]"])
        self.option("logging", "--quiet", "show warnings, errors and results only", False, action="store_true")
        text = "append all messages, with time and level, to this file"
        self.option("logging", "--log-file", text, type=str | None, metavar="FILE")
        self.option("logging", "--debug", "show the traceback of an error", False, action="store_true")

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse arguments, and check the values of flags in a YAML file, which jsonargparse does not."""
        arguments = super().parse_args(*args, **kwargs)
        for action in self._actions:
            value = arguments.get(action.dest)
            if isinstance(action, argparse._StoreTrueAction) and not isinstance(value, bool):
                self.error(f'Parser key "{action.dest}": expected true or false, got {value!r}')
        return arguments

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        """Print the error in one line and exit with code 2."""
        sys.stderr.write(f"{self.prog}: {self._explain(message)}\nSee {self.prog} --help\n")
        sys.exit(2)

    def options_by_name(self) -> dict[str, argparse.Action]:
        """Return the parsers' actions by option name, such as ``--levels``."""
        return {name: action for action in self._actions for name in action.option_strings if name.startswith("--")}

    def _explain(self, message: str) -> str:
        if match := re.search(r"[Uu]nrecognized arguments: (.*)", message, re.DOTALL):
            return self._unknown(match[1])
        if match := re.search(r"Option '([^']+)' is not accepted", message):
            names = [name.removeprefix("--").replace("-", "_") for name in self.options_by_name()]
            key = match[1].rpartition(".")[2]
            return f"{key}: expected an option of {self.prog} in the YAML file, got {key!r}{did_you_mean(key, names)}"
        if match := re.match(r'Parser key "([^"]+)":?\s*(.*)', message, re.DOTALL):
            return self._illegal(match[1], match[2])
        if match := re.match(r"the following arguments are required: (.*)", message):
            names = [self._name(dest) for dest in match[1].split(", ")]
            return f"expected the arguments {', '.join(names)}, got none"
        return " ".join(message.removeprefix("argument ").split())

    def _unknown(self, rest: str) -> str:
        name = rest.split()[0].partition("=")[0]
        renamed = RENAMED_OPTIONS.get(self.command, {})
        if name in renamed:
            return f"{name} is now called {renamed[name]}"
        if not name.startswith("-"):
            return f"expected no further arguments, got {rest}"
        known = self.options_by_name().keys() - {"--help"}
        return f"expected an option of {self.prog}, got {name}{did_you_mean(name, known)}"

    def _name(self, dest: str) -> str:
        """Return an argument's name as the user writes it."""
        option = f"--{dest.replace('_', '-')}"
        return option if option in self.options_by_name() else dest

    def _illegal(self, key: str, text: str) -> str:
        action = next((action for action in self._actions if action.dest == key), None)
        name = self._name(key)
        hint = getattr(action, "_typehint", None)
        values = re.findall(r"[Vv]alue: (.*)", text)
        if values and (expected := _describe(hint)):
            choices = [choice for choice in _choices(hint) if isinstance(choice, str)]
            return f"{name}: expected {expected}, got {values[-1].strip()!r}{did_you_mean(values[-1].strip(), choices)}"
        return f"{name}: {' '.join(text.split())}"


def options_of(kind: type[T], arguments: Namespace) -> T:
    """Create an options dataclass from the arguments of the same names; None stands for the default of a field."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: arguments[name] for name in names if arguments.get(name) is not None})


def levels(text: str | Sequence[Any]) -> tuple[Level, ...]:
    """Parse pyramid levels such as ``6,3,2,1`` or ``2x3,1`` (rows x columns), or a list from a YAML file.

    Raises:
        OptionValueError: malformed levels.
    """
    parts = text if isinstance(text, list | tuple) else re.split(r"[,\s]+", str(text).strip("()[] "))
    parsed: list[Level] = []
    for part in parts:
        if isinstance(part, list | tuple):
            part = "x".join(map(str, part))
        if not re.fullmatch(r"\d+(x\d+)?", str(part)):
            raise OptionValueError(f"expected numbers such as 6,3,2,1 or 2x3,1, got {text!r}")
        rows, _, columns = str(part).partition("x")
        parsed.append((int(rows), int(columns)) if columns else int(rows))
    return tuple(parsed)


def numbers(
    kind: type[Number] = int, minimum: float = 1, **words: tuple[Number, ...]
) -> Callable[[Any], tuple[Number, ...]]:
    """Return a parser of comma-separated numbers, or lists from a YAML file.

    Args:
        kind: type of the numbers.
        minimum: smallest legal number.
        words: legal words, and the values that they stand for.
    """

    def parse(text: Any) -> tuple[Number, ...]:
        if isinstance(text, str) and text in words:
            return words[text]
        parts = text if isinstance(text, list | tuple) else str(text).split(",")
        try:
            values = tuple(kind(part) for part in parts)
        except (TypeError, ValueError):
            values = ()
        if not (values or text == ()) or not all(value >= minimum for value in values):
            words_text = "".join(f", or {word}" for word in words)
            raise OptionValueError(f"expected comma-separated numbers of at least {minimum}{words_text}, got {text!r}")
        return values

    return parse


def optional(parse: Callable[[Any], T]) -> Callable[[Any], T | None]:
    """Return a parser that leaves None as it is."""
    return lambda text: None if text is None else parse(text)


def _as_text(default: Any) -> str:
    if isinstance(default, tuple | list):
        return ",".join("x".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def _choices(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for part in get_args(hint) for choice in _choices(part))


def _describe(hint: Any) -> str:
    """Describe the legal values of a type in words; empty if unknown."""
    if choices := _choices(hint):
        return f"one of {', '.join(str(choice) for choice in choices)}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return next((names[part] for part in (hint, *get_args(hint)) if part in names), "")
