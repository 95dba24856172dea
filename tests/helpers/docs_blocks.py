"""The fenced blocks of a page, and how each is run: commands as typed, code in one namespace a page."""

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
        language: the word behind the fence; a directive of the site has braces.
        text: what is in it.
        line: of its first line in the page, from 1.
        follows: whether nothing stands between it and the block before.
    """

    language: str
    text: str
    line: int
    follows: bool = False

    @property
    def first(self) -> str:
        """The first line, by which tables name the block."""
        return self.text.strip().splitlines()[0]


def read_blocks(page: str) -> list[Block]:
    """The fenced blocks of a page's text, in order."""
    blocks: list[Block] = []
    end = 0
    for found in _FENCE.finditer(page):
        line = page.count("\n", 0, found.start("text")) + 1
        follows = bool(blocks) and not page[end : found.start()].strip()
        blocks.append(Block(found["info"].strip().split(" ")[0], found["text"], line, follows))
        end = found.end()
    return blocks


def read_commands(text: str) -> list[str]:
    """The commands of a block: a line each, or several that end in a backslash; comments are left out."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+", " ", re.sub(r"\s+#.*$", "", line)) for line in lines if line and not line.startswith("#")]


def spans(page: str) -> list[str]:
    """The inline code of a page's text."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", _FENCE.sub("", page))]


def links(page: str) -> list[str]:
    """The targets of the links of a page's text."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "`code`", _FENCE.sub("", page)))


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as they are made from them."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def options_of(*command: str) -> set[str]:
    """The options that the help of a command names."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        run([*command, "--help"])
    return set(re.findall(r"--[a-z][a-z0-9_-]*", text.getvalue()))


def keys_of(value: Any) -> Any:
    """The form of an answer: its keys and whose they are, no values."""
    if isinstance(value, dict):
        return {name: keys_of(part) for name, part in value.items()}
    if isinstance(value, list):
        return [keys_of(value[0])] if value else []
    return None


@dataclass
class Runner:
    """Runs the blocks of one page in the working folder.

    Attributes:
        page: its name, for messages.
        smaller: by the first words of a command, options that make it short; they stand behind its own and win.
        warns: how the one warning begins that the page's code may give; any other is an error.
        namespace: of the page's code.
        printed: what the last block wrote on standard output.
    """

    page: str
    smaller: Mapping[str, str]
    warns: str = ""
    namespace: dict[str, Any] = field(default_factory=dict)
    printed: str = ""
    address: str = ""
    server: "subprocess.Popen[str] | None" = None

    def shell(self, command: str) -> None:
        """Run a command: sppnet's own in this process, a server beside it, any other in bash."""
        if self.address:
            command = _SERVER.sub(self.address, command)
        words = shlex.split(command)
        if words[:2] == ["sppnet", "serve"]:
            self._serve(words)
        elif words[0] == "sppnet" and "ray" not in words:  # Ray wants processes, and gives warnings, of its own
            target = words[words.index(">") + 1] if ">" in words else None
            words = words[1 : words.index(">")] if target else words[1:]
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                try:
                    code: Any = run(self._shorter(words))
                except SystemExit as end:  # as --version and --print_config have it
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
        """Run code statement by statement, warnings as errors, and compare what its comments say with what came."""
        block = replace(block, text=_SERVER.sub(self.address, block.text) if self.address else block.text)
        tree = ast.parse(block.text)
        comments = _comments(block.text)
        starts = {node.lineno for node in tree.body}
        for node in tree.body:
            last = node.end_lineno or node.lineno
            where = f"{self.page}, line {block.line + last - 1}"
            value, printed = self._execute(node, block)
            self.printed += printed
            said = comments.get(last, "")
            if _VALUE.match(said):
                assert isinstance(node, ast.Expr), f"{where}: # {said}: no value is there that could be compared"
                shown = printed.strip() if value is None else _show(value)
                same = shown and re.match(rf"{re.escape(shown)}($|[ ,:;])", said)
                assert same, f"{where}: the comment says {said}; got {shown or 'nothing'}"
            below = [comments[at] for at in _run_of(comments, last + 1, starts)]
            if printed and below:
                assert printed.splitlines() == below, f"{where}: {below} was to be printed; got {printed}"

    def stop(self) -> None:
        """End the page's server."""
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
                value = eval(compile(_moved(ast.Expression(node.value), block), name, "eval"), self.namespace)
            else:
                exec(compile(_moved(ast.Module([node], []), block), name, "exec"), self.namespace)
        return value, out.getvalue()

    def _shorter(self, words: list[str]) -> list[str]:
        typed = " ".join(words) + " "
        for command, options in self.smaller.items():
            if typed.startswith(f"{command} "):
                words = words + shlex.split(options)
        if words[0] in ("train", "compare-sizes", "compare-detectors") and "--resume" not in words:
            # The trainings of a page are alternatives: none goes on with another one's folder.
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
        return words

    def _serve(self, words: list[str]) -> None:
        """Start a server at a free port, and wait until it answers; the page's 8000 then means that one."""
        self.stop()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        code = "from sppnet.cli.main import main; main()"
        words = [*words[1:], *shlex.split(self.smaller.get("serve", "")), "--port", str(port)]
        self.server = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + 120
        while True:
            assert self.server.poll() is None, f"{self.page}: the server ended with {self.server.returncode}: {words}"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{self.address}/ready", timeout=5).close()
                return
            assert time.monotonic() < end, f"{self.page}: the server was not ready in two minutes: {words}"
            time.sleep(0.2)


def _show(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, torch.Size) else repr(value)


def _comments(text: str) -> dict[int, str]:
    """Comments by their line."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _run_of(comments: Mapping[int, str], line: int, starts: set[int]) -> list[int]:
    """The lines from this one on that hold a comment and no statement."""
    lines = []
    while line in comments and line not in starts:
        lines.append(line)
        line += 1
    return lines


def _moved(tree: Any, block: Block) -> Any:
    """With the line numbers of the page."""
    return ast.increment_lineno(tree, block.line - 1)


def compare_json(page: str, block: Block, printed: str) -> None:
    """What a page shows of an answer has the keys of the answer that came."""
    shown = keys_of(json.loads(block.text))
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    assert lines, f"{page}, line {block.line}: no answer came that could be compared with the one shown"
    came = keys_of(json.loads(lines[-1]))
    assert came == shown, f"{page}, line {block.line}: the page shows {shown}; the answer has {came}"
