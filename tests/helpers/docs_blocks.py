"""Parse the fenced blocks of documentation pages and run them: shell commands, and Python in one namespace per page."""

import ast
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tokenize
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sppnet.cli.main import run

SHELL = ("sh", "bash")
_FENCE = re.compile(r"^(?P<fence>```+|:::+)(?P<info>.*?)\n(?P<text>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL)
_VALUE = re.compile(r"[(\[{'\"0-9-]|True|False|None")
_SERVER = re.compile(r"(127\.0\.0\.1|localhost):8000")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: word after the fence; directives have braces.
        text: contents.
        line: line number of the first line of the contents, from 1.
        follows: whether the block directly follows the previous one.
    """

    language: str
    text: str
    line: int
    follows: bool = False

    @property
    def first(self) -> str:
        """First line, which identifies the block in tables."""
        return self.text.strip().splitlines()[0]


def read_blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    blocks: list[Block] = []
    end = 0
    for match in _FENCE.finditer(page):
        line = page.count("\n", 0, match.start("text")) + 1
        follows = bool(blocks) and not page[end : match.start()].strip()
        blocks.append(Block(match["info"].strip().split(" ")[0], match["text"], line, follows))
        end = match.end()
    return blocks


def read_commands(text: str) -> list[str]:
    """Return the commands of a block without comments; a backslash continues a command on the next line."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+", " ", re.sub(r"\s+#.*$", "", line)) for line in lines if line and not line.startswith("#")]


def spans(page: str) -> list[str]:
    """Return the inline code of a page."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", _FENCE.sub("", page))]


def links(page: str) -> list[str]:
    """Return the link targets of a page."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "`code`", _FENCE.sub("", page)))


def anchors(page: str) -> set[str]:
    """Return the anchors generated from the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def options_of(*command: str) -> set[str]:
    """Return the options in the help of a command."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        run([*command, "--help"])
    return set(re.findall(r"--[a-z][a-z0-9_-]*", text.getvalue()))


def keys_of(value: Any) -> Any:
    """Return the nested keys of a JSON value without the values."""
    if isinstance(value, dict):
        return {name: keys_of(part) for name, part in value.items()}
    if isinstance(value, list):
        return [keys_of(value[0])] if value else []
    return None


@dataclass
class Runner:
    """Runner of the blocks of one page in the working folder.

    Attributes:
        page: name of the page, for messages.
        smaller: options that make a command fast, by its first words; they are appended and override its own.
        warns: beginning of the only warning that the code of the page may raise; others are errors.
        namespace: namespace of the code of the page.
        printed: standard output of the last block.
    """

    page: str
    smaller: Mapping[str, str]
    warns: str = ""
    namespace: dict[str, Any] = field(default_factory=dict)
    printed: str = ""
    address: str = ""
    server: "subprocess.Popen[str] | None" = None

    def shell(self, command: str) -> None:
        """Run a command: sppnet in this process, servers as subprocesses, everything else in bash."""
        if self.address:
            command = _SERVER.sub(self.address, command)
        words = shlex.split(command)
        if words[:2] == ["sppnet", "serve"]:
            self._serve(words)
        elif words[0] == "sppnet" and "ray" not in words:  # Ray starts processes and raises warnings
            target = words[words.index(">") + 1] if ">" in words else None
            words = words[1 : words.index(">")] if target else words[1:]
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                try:
                    code: Any = run(self._shorter(words))
                except SystemExit as end:  # --version and --print_config exit
                    code = end.code or 0
            assert code == 0, f"{self.page}: exit code {code}: {command}"
            self.printed += "" if target else out.getvalue()
            if target:
                Path(target).write_text(out.getvalue(), encoding="utf-8")
        else:
            paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command],
                env=os.environ | {"PATH": paths},
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            assert done.returncode == 0, f"{self.page}: {command}\n{done.stdout}{done.stderr}"
            self.printed += done.stdout

    def python(self, block: Block) -> None:
        """Run code statement by statement, with warnings as errors, and compare values and output with its comments."""
        block = replace(block, text=_SERVER.sub(self.address, block.text) if self.address else block.text)
        tree = ast.parse(block.text)
        comments = _comments(block.text)
        starts = {node.lineno for node in tree.body}
        for node in tree.body:
            last = node.end_lineno or node.lineno
            where = f"{self.page}, line {block.line + last - 1}"
            value, printed = self._execute(node, block)
            self.printed += printed
            comment = comments.get(last, "")
            if _VALUE.match(comment):
                assert isinstance(node, ast.Expr), f"{where}: # {comment}: expected an expression"
                actual = printed.strip() if value is None else _show(value)
                same = actual and re.match(rf"{re.escape(actual)}($|[ ,:;])", comment)
                assert same, f"{where}: expected {comment}, got {actual or 'nothing'}"
            expected = [comments[line] for line in _comment_lines(comments, last + 1, starts)]
            if printed and expected:
                assert printed.splitlines() == expected, (
                    f"{where}: expected {expected} on standard output, got {printed}"
                )

    def stop(self) -> None:
        """Stop the server of the page."""
        if self.server:
            self.server.terminate()
            try:
                self.server.wait(30)
            finally:
                self.server.kill()
            assert self.server.stdout is not None
            self.server.stdout.close()
            self.server = None

    def _execute(self, node: ast.stmt, block: Block) -> tuple[Any, str]:
        out = io.StringIO()
        value = None
        name = f"<{self.page}>"
        with warnings.catch_warnings(), contextlib.redirect_stdout(out):
            warnings.simplefilter("error")
            if self.warns:
                warnings.filterwarnings("ignore", self.warns)
            if isinstance(node, ast.Expr):
                value = eval(compile(_with_page_lines(ast.Expression(node.value), block), name, "eval"), self.namespace)
            else:
                exec(compile(_with_page_lines(ast.Module([node], []), block), name, "exec"), self.namespace)
        return value, out.getvalue()

    def _shorter(self, words: list[str]) -> list[str]:
        command_line = " ".join(words) + " "
        for command, options in self.smaller.items():
            if command_line.startswith(f"{command} "):
                words = words + shlex.split(options)
        if words[0] in ("train", "compare") and "--resume" not in words:
            # The trainings of a page are alternatives, so none resumes another.
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
        return words

    def _serve(self, words: list[str]) -> None:
        """Start a server on a free port, which replaces port 8000 in the page, and wait until it is ready."""
        self.stop()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        code = "from sppnet.cli.main import main; main()"
        words = [*words[1:], *shlex.split(self.smaller.get("serve", "")), "--port", str(port)]
        self.server = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while True:
            assert self.server.poll() is None, f"{self.page}: the server exited with {self.server.returncode}: {words}"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{self.address}/ready", timeout=5).close()
                return
            assert time.monotonic() < deadline, f"{self.page}: the server was not ready after two minutes: {words}"
            time.sleep(0.2)


def _show(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, torch.Size) else repr(value)


def _comments(text: str) -> dict[int, str]:
    """Return the comments by line number."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _comment_lines(comments: Mapping[int, str], line: int, starts: set[int]) -> list[int]:
    """Return the consecutive line numbers from `line` on that have a comment and no statement."""
    lines = []
    while line in comments and line not in starts:
        lines.append(line)
        line += 1
    return lines


def _with_page_lines(tree: Any, block: Block) -> Any:
    """Shift the line numbers of the tree to those of the page."""
    return ast.increment_lineno(tree, block.line - 1)


def compare_json(page: str, block: Block, printed: str) -> None:
    """Check that the JSON of a block has the keys of the last JSON line that was printed."""
    expected = keys_of(json.loads(block.text))
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    assert lines, f"{page}, line {block.line}: expected JSON on standard output, got none"
    actual = keys_of(json.loads(lines[-1]))
    assert actual == expected, f"{page}, line {block.line}: expected the keys {expected}, got {actual}"
