"""Run every command and code block of the documentation, check its names and links, and build the site."""

import html
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sppnet
from sppnet.cli import main, vocabulary
from sppnet.serving.limits import CODES
from tests.helpers.detection_data import write_voc
from tests.helpers.docs_blocks import (
    SHELL,
    Runner,
    anchors,
    compare_json,
    links,
    options_of,
    read_blocks,
    read_commands,
    spans,
)
from tests.helpers.docs_tables import FILES, NOT_RUN, PREREQUISITES, RENAMED, SLOW, SMALLER, WARNS
from tests.helpers.images import write_classes
from tests.helpers.segmentation_data import write_shapes
from tests.helpers.two_stage import shorten_comparisons

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
}
COMMANDS = [name.split() for name in vocabulary.COMMANDS]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small versions of the reader's data: DATA, VOC, MASKS, photos/ and a few images."""
    root = tmp_path_factory.mktemp("library")
    write_classes(root / "DATA" / "train", 3)
    write_classes(root / "DATA" / "val", 2)
    write_classes(root / "CLASSES", 6, (120, 300))
    write_voc(root / "VOC", 3, 2)
    lists = root / "VOC" / "ImageSets" / "Main"
    shutil.copy(lists / "test.txt", lists / "val.txt")
    write_shapes(root / "MASKS", "camvid", {"train": 2, "val": 1, "test": 1})
    (root / "photos").mkdir()
    samples = Path(pytest.importorskip("sklearn.datasets").__file__).parent / "images"
    for name in ("china.jpg", "flower.jpg"):
        shutil.copy(samples / name, root / "photos" / name)
    china = Image.open(root / "photos" / "china.jpg")
    china.save(root / "a.jpg")
    for name, size in {
        "b.png": (300, 200),
        "photo.png": (203, 161),
        "photo.jpg": (203, 161),
        "scan.png": (130, 90),
    }.items():
        china.resize(size).save(root / name)
    (root / "boxes.csv").write_text("image,x1,y1,x2,y2\nchina.jpg,0,0,640,427\nflower.jpg,100,50,500,350\n")
    return root


@pytest.fixture
def workspace(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None) -> Path:
    """Change to a fresh folder with a copy of `library`, disable shape checks as in normal use, and shorten epochs."""
    shorten_comparisons(monkeypatch)
    shutil.copytree(library, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _page_params() -> list[Any]:
    params = []
    for name, path in sorted(PAGES.items()):
        blocks = read_blocks(path.read_text())
        if any(block.language in (*SHELL, "python") for block in blocks):
            params.append(pytest.param(name, False, id=name))
            if any(page == name for page, _ in SLOW):
                params.append(pytest.param(name, True, id=f"{name}-all", marks=pytest.mark.slow))
    return params


@pytest.mark.parametrize(("name", "everything"), _page_params())
def test_commands_and_code_of_a_page_run(name: str, everything: bool, workspace: Path) -> None:
    for target, source in RENAMED.get(name, {}).items():
        shutil.rmtree(workspace / target, ignore_errors=True)
        shutil.copytree(workspace / source, workspace / target)
    runner = Runner(name, SMALLER, WARNS.get(name, ""))
    for line in PREREQUISITES.get(name, ()):
        runner.shell(line)
    skipped = set(NOT_RUN) | (set() if everything else set(SLOW))
    try:
        _run_page(name, runner, {command for page, command in skipped if page == name})
    finally:
        runner.stop()


def _run_page(name: str, runner: Runner, skipped: set[str]) -> None:
    previous = ""
    for block in read_blocks(PAGES[name].read_text()):
        if block.first in skipped and block.language not in SHELL:
            previous = ""
            continue
        if block.language in SHELL:
            runner.printed = ""
            commands = read_commands(block.text)
            for command in commands:
                if command not in skipped:
                    runner.shell(command)
            previous = "" if skipped.issuperset(commands) else "sh"
        elif block.language == "python":
            runner.printed = ""
            runner.python(block)
            previous = "python"
        elif (name, block.language) in FILES:
            Path(FILES[name, block.language]).write_text(block.text)
        elif block.language == "json" and block.follows and previous == "sh":
            compare_json(name, block, runner.printed)
        elif block.language == "text" and block.follows and previous == "python":
            assert runner.printed == block.text, f"{name}, line {block.line}: got {runner.printed}"


def test_blocks_have_supported_languages() -> None:
    """Commands, Python, YAML, text and directives; JSON and CSV only as files or, for JSON, after a command."""
    for name, path in PAGES.items():
        previous = ""
        for block in read_blocks(path.read_text()):
            where = f"{name}, line {block.line}: a block of {block.language or 'no language'}"
            if (name, block.language) in FILES:
                continue
            if block.language == "json":
                assert block.follows, f"{where} is not in FILES and does not follow a command"
                assert previous in SHELL, f"{where} is not in FILES and does not follow a command"
            elif not re.fullmatch(r"\{[a-z-]+\}", block.language):
                assert block.language in (*SHELL, "python", "yaml", "text"), where
            previous = block.language


def test_tables_of_exceptions_are_up_to_date() -> None:
    for page, line in [*NOT_RUN, *SLOW]:
        blocks = read_blocks(PAGES[page].read_text())
        lines = {command for block in blocks if block.language in SHELL for command in read_commands(block.text)}
        lines |= {block.first for block in blocks if block.language == "python"}
        assert line in lines, f"{page} has no {line!r}"
    for page, language in FILES:
        assert language in {block.language for block in read_blocks(PAGES[page].read_text())}, (page, language)
    assert all(reason for reason in [*NOT_RUN.values(), *SLOW.values()])


def test_commands_that_are_not_run_parse() -> None:
    for _, command in NOT_RUN:
        if command.startswith("sppnet "):
            name, arguments = main._find_command(shlex.split(command)[1:])
            parser, _ = main.load_command(name)
            parser.parse_args(arguments)


def test_yaml_blocks_are_valid_options(tmp_path: Path) -> None:
    parser, _ = main.load_command("train classify")
    blocks = [block for path in PAGES.values() for block in read_blocks(path.read_text()) if block.language == "yaml"]
    assert blocks
    for block in blocks:
        (tmp_path / "options.yaml").write_text(block.text)
        parser.parse_args(["DATA", "--out", "RUN", "--config", str(tmp_path / "options.yaml")])


def test_server_page_lists_every_error_code_with_its_status() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (\d+) \|", PAGES["docs/serve.md"].read_text(), re.MULTILINE)
    assert {code: int(status) for code, status in rows} == {code: status for code, (status, _) in CODES.items()}


@pytest.mark.parametrize("name", [*sorted(PAGES), "benchmarks/README.md", "examples/ends/README.md"])
def test_links_have_existing_targets(name: str) -> None:
    """Links within the repository; Sphinx also checks those of the site."""
    path = ROOT / name
    for link in links(path.read_text()):
        if re.match(r"[a-z0-9+]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors(target.read_text()), f"{name}: {link}"


@pytest.fixture(scope="module")
def known_options() -> dict[str, set[str]]:
    """Return the options of each command, and of each script by its path."""
    options = {" ".join(command): options_of(*command) for command in COMMANDS}
    for script in [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*/*.py")]:
        options[str(script.relative_to(ROOT))] = set(re.findall(r"\"(--[a-z][a-z-]*)\"", script.read_text()))
    return options


@pytest.mark.parametrize("name", sorted(PAGES))
def test_options_in_the_text_exist(name: str, known_options: dict[str, set[str]]) -> None:
    all_options = set().union(*known_options.values())
    for span in spans(PAGES[name].read_text()):
        words = re.sub(r"^(python|sppnet) ", "", span)
        own = next(
            (options for command, options in known_options.items() if f"{words} ".startswith(f"{command} ")), None
        )
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", span):
            assert option in (all_options if own is None else own), f"{name}: `{span}`: unknown option {option}"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_files_and_names_in_the_text_exist(name: str) -> None:
    files = {
        path.name
        for folder in ("src", "tests", "benchmarks", "examples", "docs")
        for path in (ROOT / folder).rglob("*")
    }
    for span in spans(PAGES[name].read_text()):
        if re.fullmatch(r"[\w/.]+\.py", span):
            assert (ROOT / span).exists() or span in files or (ROOT / "src/sppnet" / span).exists(), f"{name}: `{span}`"
        elif re.fullmatch(r"sppnet(\.\w+)+(\(.*\))?", span):
            try:
                pkgutil.resolve_name(span.partition("(")[0])
            except (ImportError, AttributeError):
                pytest.fail(f"{name}: unknown name `{span}`")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as in CONTRIBUTING.md, without network access."""
    pytest.importorskip("sphinx")
    out = tmp_path_factory.mktemp("site")
    dead_proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "--keep-going", str(DOCS), str(out)],
        env=os.environ | dead_proxies,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_site_builds_without_warnings(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert pages >= {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}


def test_site_requests_no_other_host(site: Path) -> None:
    """Scripts, styles, fonts and images are local; links may lead elsewhere."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|link|img|iframe|source|object)\b[^>]*>", text):
            external = re.search(r"(?:src|href|data)=\"((?:https?:)?//[^\"]*)\"", tag)
            assert not external, f"{page.name}: {tag}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_reference_has_every_public_name(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    names = {name for kind in ("py:class", "py:function", "py:exception") for name in inventory[kind]}
    assert not [name for name in sppnet.__all__ if f"sppnet.{name}" not in names]


def test_reference_has_every_command_with_its_help(site: Path) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "cli.html").read_text(encoding="utf-8")))
    for command in COMMANDS:
        assert f"sppnet {' '.join(command)}" in text
        assert not [option for option in options_of(*command) if option not in text], command
