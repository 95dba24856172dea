"""Requirements of sppnet's extras, and programs that run as if only some extras were installed."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "sppnet"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
NOT_FOR_USERS = {"all", "dev", "docs"}

_HIDE = """
import json, sys

hidden = frozenset(json.loads(sys.argv.pop(1)))

class Hide:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path = [Hide(finder) for finder in sys.meta_path]
"""


def requirements(*extras: str) -> list[Requirement]:
    """Return the requirements of sppnet with some extras, including the extras that these refer to."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    parsed = [Requirement(line) for line in lines]
    inner = {extra for requirement in parsed if requirement.name == "sppnet" for extra in requirement.extras}
    return requirements(*inner.union(extras)) if inner - set(extras) else [r for r in parsed if r.name != "sppnet"]


def names(*extras: str) -> set[str]:
    """Return the names of the packages that sppnet with some extras requires directly."""
    return {canonicalize_name(requirement.name) for requirement in requirements(*extras)}


def distributions(*extras: str) -> set[str]:
    """Return the names of the installed distributions that sppnet needs, directly or indirectly."""
    pending, done = [(requirement, frozenset({""})) for requirement in requirements(*extras)], set()
    while pending:
        requirement, requested = pending.pop()
        name, own = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in requested):
            continue
        if (name, own) not in done:
            done.add((name, own))
            pending += [(Requirement(line), own) for line in importlib.metadata.requires(name) or ()]
    return {name for name, _ in done}


def run_with_extras(extras: tuple[str, ...], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which nothing can be imported except sppnet and the packages of these extras.

    Args:
        extras: names of extras.
        code: Python code.
        arguments: values of ``sys.argv[1:]``.
    """
    visible = distributions(*extras) | {"sppnet"}
    owners = importlib.metadata.packages_distributions()
    hidden = [name for name, own in owners.items() if not visible.intersection(map(canonicalize_name, own))]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", _HIDE + code, json.dumps(hidden), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CXX": "/no/such/compiler", "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
