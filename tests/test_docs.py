"""Every command and code block of the pages is run, every name and link in them is looked up, and the site is built."""

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
from sppnet.cli import main
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
from tests.helpers.images import write_classes
from tests.helpers.segmentation_data import write_shapes

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
}
COMMANDS = [name.split() for name in main._parsers()[1]]

# By the first words of a command, options that stand behind those of a page and win: a training of seconds instead of
# one of minutes.
_TINY = "--backbone test_resnet --weights none"
SMALLER = {
    "train classify": "--epochs 2 --batch 4 --devices 1 --workers 0",
    "train classify train.csv": _TINY,
    "train classify DATA --epochs 40": _TINY,
    "train detect": "--epochs 1 --steps 1 --windows 40 --proposals grid --scales 128 --hidden 16,16",
    "train segment": "--epochs 1 --batch 2 --crop 64,64",
    "compare-sizes": f"{_TINY} --epochs 2 --seeds 1 --images-per-class 1 --val-images-per-class 1 --batch 4",
    "compare-detectors": f"{_TINY} --epochs 1 --steps 1 --seeds 1 --images 2 --windows 8 --proposals grid --hidden 9,9",
    "export": "--sizes 5",
    "verify": "--sizes 5",
    "doctor --backbone": "--images 3",
    "bench": "--shape 1,8,9,11",
    "serve": "--workers 1",
}

# Which of the folders of `shelf` a page finds, and under which name; README's are there for all others.
OWN = {
    "docs/check.md": {"photos": "DATA/train"},
    "docs/detection.md": {"DATA": "VOC"},
    "docs/segmentation.md": {"DATA": "MASKS"},
    "docs/tutorial.md": {"DATA": "CLASSES"},
}
# Files that a page shows: a block of this language is the file of this name.
FILES = {("docs/features.md", "csv"): "boxes.csv", ("docs/features.md", "json"): "boxes.jsonl"}

# What must be there before a page begins, since another page makes it.
_RUN = f"sppnet train classify DATA --freeze-backbone --out RUN {_TINY}"
BEFORE = {
    "docs/export.md": [_RUN],
    "docs/scale.md": [_RUN],
    "docs/sizes.md": [_RUN],
    "docs/serve.md": [
        _RUN,
        "sppnet train detect VOC --split train --out DETECTOR",
        "sppnet train segment MASKS --out SEGMENTER",
    ],
}

# How the warning begins that the code of a page is there to show.
WARNS = {"docs/segmentation.md": "ASPP: on a map of 28 x 28 cells"}

# Nothing runs these, for the reason given. Each must stand on its page, and those of sppnet must be understood.
_INSTALLS = "installs packages"
_DOWNLOADS = "downloads weights"
_CI = "runs all tests; CI runs it word for word in a fresh clone"
NOT_RUN = {
    ("README.md", 'python3 -m venv .venv && .venv/bin/pip install ".[all]" && .venv/bin/sppnet demo'): _INSTALLS,
    ("README.md", 'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/python -m pytest -n 2'): _CI,
    (
        "CONTRIBUTING.md",
        ".venv/bin/ruff check . && .venv/bin/ruff format . && .venv/bin/mypy && .venv/bin/python -m pytest -n 2",
    ): _CI,
    **{
        (page, line): _INSTALLS
        for page in ("docs/install.md", "docs/tutorial.md")
        for line in ("python3 -m venv .venv && . .venv/bin/activate", 'pip install ".[all]"')
    },
    ("docs/install.md", "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"): _INSTALLS,
    ("docs/install.md", 'pip install ".[serve,export]"'): _INSTALLS,
    ("docs/classify.md", "sppnet train classify DATA --backbone resnet50 --weights hub --out RUN-RESNET50"): _DOWNLOADS,
    ("docs/scale.md", "pip install s3fs"): _INSTALLS,
    **{
        ("docs/scale.md", line): "needs a cluster of several machines"
        for line in (
            "torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint 10.0.0.5:29400 --rdzv-id 1"
            " -m sppnet train classify DATA --out /shared/RUN",
            "sppnet predict RUN photos --engine ray --ray-address auto --out /shared/answers",
            "sppnet predict RUN photos --engine ray --ray-address 10.0.0.5:6379 --out /shared/answers",
        )
    },
    **{
        ("docs/scale.md", line): "needs a store"
        for line in (
            "sppnet predict RUN s3://bucket/photos --engine ray --ray-address ray://10.0.0.5:10001 --out s3://bucket/answers",
            "sppnet predict s3://bucket/run s3://bucket/photos --engine ray --out s3://bucket/answers",
            "sppnet predict RUN 's3://bucket/photos/2024-*/**/*.jpg' --engine ray --out s3://bucket/answers",
            "sppnet features s3://bucket/photos --boxes s3://bucket/boxes.csv --engine ray --out s3://bucket/vectors",
        )
    },
    **{
        ("docs/serve.md", line): "needs Docker; tests/test_packaging.py looks at the Dockerfile"
        for line in (
            "docker build -t sppnet .",
            "docker run --rm -p 8000:8000 sppnet",
            'docker run --rm -p 8000:8000 -v "$PWD:/runs" sppnet serve RUN --host 0.0.0.0',
        )
    },
}
# Run by `pytest -m slow` only, each with its reason.
SLOW = {
    ("docs/scale.md", line): "starts Ray"
    for line in (
        "sppnet predict RUN photos --engine ray --out answers",
        "sppnet features photos --boxes boxes.csv --engine ray --out vectors",
        "sppnet predict imagenet photos --engine ray --out imagenet-answers",
        "sppnet predict imagenet photos --engine ray --out imagenet-answers --actors 4 --json > answers.jsonl",
        "from sppnet.io.part_files import read_answers",
    )
}


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's own data, small: DATA, VOC, MASKS, photos/ and a few images."""
    root = tmp_path_factory.mktemp("shelf")
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
def desk(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None) -> Path:
    """A fresh working folder with all that is on the shelf, and the package as a user has it."""
    shutil.copytree(shelf, tmp_path, dirs_exist_ok=True)
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
def test_what_a_page_shows_works(name: str, everything: bool, desk: Path) -> None:
    for there, source in OWN.get(name, {}).items():
        shutil.rmtree(desk / there, ignore_errors=True)
        shutil.copytree(desk / source, desk / there)
    runner = Runner(name, SMALLER, WARNS.get(name, ""))
    for line in BEFORE.get(name, ()):
        runner.shell(line)
    skipped = set(NOT_RUN) | (set() if everything else set(SLOW))
    try:
        _run_page(name, runner, {typed for page, typed in skipped if page == name})
    finally:
        runner.stop()


def _run_page(name: str, runner: Runner, skipped: set[str]) -> None:
    before = ""
    for block in read_blocks(PAGES[name].read_text()):
        if block.first in skipped and block.language not in SHELL:
            before = ""
            continue
        if block.language in SHELL:
            runner.printed = ""
            commands = read_commands(block.text)
            for command in commands:
                if command not in skipped:
                    runner.shell(command)
            before = "" if skipped.issuperset(commands) else "sh"
        elif block.language == "python":
            runner.printed = ""
            runner.python(block)
            before = "python"
        elif (name, block.language) in FILES:
            Path(FILES[name, block.language]).write_text(block.text)
        elif block.language == "json" and block.follows and before == "sh":
            compare_json(name, block, runner.printed)
        elif block.language == "text" and block.follows and before == "python":
            assert runner.printed == block.text, f"{name}, line {block.line}: that is not what was printed"


def test_every_block_is_of_a_language_that_is_dealt_with() -> None:
    """Code and commands are run; json and csv stand for files or follow a command; text is text; the site's own."""
    for name, path in PAGES.items():
        before = ""
        for block in read_blocks(path.read_text()):
            where = f"{name}, line {block.line}: a block of {block.language or 'no language'}"
            if (name, block.language) in FILES:
                continue
            if block.language == "json":
                assert block.follows, f"{where} neither is a file of FILES nor follows a command"
                assert before in SHELL, f"{where} neither is a file of FILES nor follows a command"
            elif not re.fullmatch(r"\{[a-z-]+\}", block.language):
                assert block.language in (*SHELL, "python", "text"), where
            before = block.language


def test_tables_of_exceptions_hold_nothing_that_is_not_there() -> None:
    for page, typed in [*NOT_RUN, *SLOW]:
        blocks = read_blocks(PAGES[page].read_text())
        there = {command for block in blocks if block.language in SHELL for command in read_commands(block.text)}
        there |= {block.first for block in blocks if block.language == "python"}
        assert typed in there, f"{page} has no {typed!r}"
    for page, language in FILES:
        assert language in {block.language for block in read_blocks(PAGES[page].read_text())}, (page, language)
    assert all(reason for reason in [*NOT_RUN.values(), *SLOW.values()])


def test_commands_that_nothing_runs_are_understood_at_least() -> None:
    parser, _ = main._parsers()
    for _, typed in NOT_RUN:
        if typed.startswith("sppnet "):
            parser.parse_args(shlex.split(typed)[1:])


def test_the_page_of_the_server_has_every_code_with_its_status() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (\d+) \|", PAGES["docs/serve.md"].read_text(), re.MULTILINE)
    assert {code: int(status) for code, status in rows} == {code: status for code, (status, _) in CODES.items()}


@pytest.mark.parametrize("name", [*sorted(PAGES), "benchmarks/README.md", "examples/ends/README.md"])
def test_links_lead_to_a_file_and_a_heading(name: str) -> None:
    """In the repository; those of the site Sphinx checks, too."""
    here = ROOT / name
    for link in links(here.read_text()):
        if re.match(r"[a-z0-9+]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (here.parent / file).resolve() if file else here
        assert target.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors(target.read_text()), f"{name}: {link}"


@pytest.fixture(scope="module")
def known_options() -> dict[str, set[str]]:
    """Options by command; those of the scripts under their names."""
    found = {" ".join(command): options_of(*command) for command in COMMANDS}
    for script in [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*/*.py")]:
        found[str(script.relative_to(ROOT))] = set(re.findall(r"\"(--[a-z][a-z-]*)\"", script.read_text()))
    return found


@pytest.mark.parametrize("name", sorted(PAGES))
def test_options_in_the_text_exist(name: str, known_options: dict[str, set[str]]) -> None:
    everywhere = set().union(*known_options.values())
    for span in spans(PAGES[name].read_text()):
        words = re.sub(r"^(python|sppnet) ", "", span)
        own = next(
            (options for command, options in known_options.items() if f"{words} ".startswith(f"{command} ")), None
        )
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", span):
            assert option in (everywhere if own is None else own), f"{name}: `{span}`: there is no option {option}"


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
                pytest.fail(f"{name}: there is no `{span}`")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CONTRIBUTING.md has it, with no way out to the network."""
    pytest.importorskip("sphinx")
    out = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "--keep-going", str(DOCS), str(out)],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_site_is_built_without_a_warning(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert pages >= {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}


def test_the_site_asks_no_other_host(site: Path) -> None:
    """Scripts, styles, fonts and pictures are its own; links that a reader may follow are no requests."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|link|img|iframe|source|object)\b[^>]*>", text):
            found = re.search(r"(?:src|href|data)=\"((?:https?:)?//[^\"]*)\"", tag)
            assert not found, f"{page.name}: {tag}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_the_reference_has_every_public_name(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    names = {name for kind in ("py:class", "py:function", "py:exception") for name in inventory[kind]}
    assert not [name for name in sppnet.__all__ if f"sppnet.{name}" not in names]


def test_the_reference_has_every_command_with_its_help(site: Path) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "cli.html").read_text(encoding="utf-8")))
    for command in COMMANDS:
        assert f"sppnet {' '.join(command)}" in text
        assert not [option for option in options_of(*command) if option not in text], command
