"""Entry point of the `sppnet` command: find the command, parse its arguments, run it, return the exit code."""

import dis
import errno
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from sppnet import __version__
from sppnet.cli.vocabulary import COMMANDS, RENAMED_COMMANDS, Command
from sppnet.errors import ImageError, did_you_mean, missing_extra

INTERRUPTED = 130
_DESCRIPTION = "Spatial pyramid pooling: networks that process each image at its own size."
_PACKAGE = str(Path(__file__).parents[1])
_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EACCES: "check the permissions or choose another path",
    errno.EPERM: "check the permissions or choose another path",
    errno.EROFS: "choose a path on another file system",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.EISDIR: "choose the path of a file",
    errno.EEXIST: "choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EADDRINUSE: "choose another --port",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    Exit codes: 0 success; 1 failure, or images that could not be used; 2 wrong arguments or data; 130 interrupted.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        # Read by GNU OpenMP when torch is imported. By default, a thread that waits for the others of an operator keeps
        # its core busy for milliseconds; if another program needs this core, all of them wait for it.
        os.environ["GOMP_SPINCOUNT"] = "1000"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # results survive a later kill
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run a command and return its exit code.

    Raises:
        SystemExit: --help, or arguments that the parser rejects.
    """
    saved, debug = "nothing was written", "--debug" in argv
    try:
        name, rest = _find_command(list(argv))
        if not name:
            return 0
        parser, function = load_command(name)
        arguments = parser.parse_args(rest)
        saved = COMMANDS[name].saved.format(out=arguments.get("out") or "the run folder")
        from sppnet.cli.console import reporting

        with reporting(arguments.quiet, arguments.log_file):
            warnings.filterwarnings("ignore", module="PIL")  # our own messages name the file
            code: int = function(arguments)
        return code
    except KeyboardInterrupt:
        _print_error(f"interrupted; {saved}")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of standard output closed it, as `head` does. Python's final flush must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        _print_error(_describe(error))
        wrong_input = isinstance(error, ValueError | TypeError) and not isinstance(error, ImageError)
        return 2 if wrong_input and _is_raised_here(error) else 1


def load_command(name: str) -> tuple[Any, Callable[[Any], int]]:
    """Return the parser and the function of a command."""
    module, function, *_ = COMMANDS[name]
    try:
        imported = import_module(f"sppnet.cli.{module}")
    except ModuleNotFoundError as error:
        raise missing_extra(error, "commands") from None
    parser = getattr(imported, f"{function}_parser")()
    parser.finish()
    return parser, getattr(imported, function)


def _find_command(argv: list[str]) -> tuple[str, list[str]]:
    """Return the name and the arguments of the command; no name if there is nothing else to do."""
    if argv[:1] == ["--version"]:
        sys.stdout.write(f"sppnet {__version__}\n")
        return "", []
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_usage("", COMMANDS, _DESCRIPTION))
        return "", []
    first, *rest = argv
    if first in COMMANDS:
        return first, rest
    members = {name: command for name, command in COMMANDS.items() if name.split()[0] == first}
    if not members:
        known = {name: name for name in COMMANDS} | {name.split()[0]: name.split()[0] for name in COMMANDS}
        _refuse("", first, COMMANDS, RENAMED_COMMANDS.get(first) or _closest(first, known))
    if not rest or rest[0] in ("-h", "--help"):
        sys.stdout.write(_usage(first, members))
        return "", []
    name = f"{first} {rest[0]}"
    if name not in members:
        _refuse(first, rest[0], members, _closest(rest[0], {name.split()[1]: name.split()[1] for name in members}))
    return name, rest[1:]


def _closest(name: str, known: dict[str, str]) -> str:
    return did_you_mean(name, known).removeprefix("; did you mean ").removesuffix("?")


def _refuse(prefix: str, given: str, commands: dict[str, Command], suggestion: str) -> None:
    """Exit with code 2 for an unknown command."""
    prog = f"sppnet {prefix}".strip()
    hint = f"; did you mean {suggestion}?" if suggestion else ""
    names = ", ".join(name.removeprefix(prefix).strip() for name in commands)
    sys.stderr.write(f"{prog}: expected a command, one of {names}, got {given}{hint}\nSee {prog} --help\n")
    sys.exit(2)


def _usage(prefix: str, commands: dict[str, Command], description: str = "") -> str:
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {command.help}" for name, command in commands.items()]
    text = f"usage: {f'sppnet {prefix}'.strip()} COMMAND [OPTIONS]\n"
    text += f"\n{description}\n" if description else ""
    return text + "\ncommands:\n" + "\n".join(lines) + "\n\nsppnet COMMAND --help describes the options of a command.\n"


def _is_raised_here(error: BaseException) -> bool:
    """Return whether an error comes from a raise statement of this package, and so was foreseen."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    if step is None or not step.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        return False
    return dis.opname[step.tb_frame.f_code.co_code[step.tb_lasti]] == "RAISE_VARARGS"


def _describe(error: Exception) -> str:
    """Describe an error in one line, with what to do next."""
    if isinstance(error, OSError) and error.strerror:
        path = f"{error.filename}: " if error.filename is not None else ""
        remedy = _REMEDIES.get(error.errno or 0, "")
        return f"{path}{error.strerror}{f'; {remedy}' if remedy else ''}"
    if isinstance(error, ImageError | ModuleNotFoundError) or _is_raised_here(error):
        if isinstance(error, ModuleNotFoundError) and not _is_raised_here(error):
            error = missing_extra(error, "commands")
        return " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "not enough memory; use a smaller --batch or smaller images"
    return (
        f"unexpected {type(error).__name__}: {' '.join(str(error).split())}; run again with --debug for the traceback"
    )


def _print_error(text: str) -> None:
    sys.stderr.write(f"sppnet: {text}\n")
