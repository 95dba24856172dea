"""Wheel, sdist, metadata, container, project files, and programs of the installed wheel."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.utils import canonicalize_name

import sppnet
from sppnet.cli.serve import serve_parser
from sppnet.tools import environment
from tests.helpers.images import write_classes
from tests.helpers.installation import EXTRAS, NOT_FOR_USERS, PROJECT, ROOT, SOURCE, distributions, names, requirements

SHIPPED = {".py", ".typed", ".html", ".css", ".js", ".svg"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, the wheel from the sdist, and in `direct` the wheel from the checkout."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", str(ROOT)]
    subprocess.run([*build, "--outdir", str(out)], check=True, capture_output=True)
    subprocess.run([*build, "--wheel", "--outdir", str(out / "direct")], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> importlib.metadata.Distribution:
    out = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(out)
    (distribution,) = importlib.metadata.distributions(path=[str(out)])
    return distribution


def test_wheel_contains_exactly_the_package(wheel: Path) -> None:
    assert wheel.name == f"sppnet-{sppnet.__version__}-py3-none-any.whl"
    files = {path.relative_to(SOURCE.parent) for path in SOURCE.rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.parts}
    assert {path.suffix for path in files} <= SHIPPED
    info = f"sppnet-{sppnet.__version__}.dist-info"
    texts = ("licenses/LICENSE", "licenses/NOTICE")
    info_files = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", *texts)}
    assert set(contents(wheel)) == {path.as_posix() for path in files} | info_files
    for name in ("py.typed", "serving/page/index.html"):
        assert f"sppnet/{name}" in contents(wheel)


def test_dockerfile_refers_to_existing_files_extras_and_commands() -> None:
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    included = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in lines if re.match("COPY (?!--from)", line) for name in line.split()[1:-1]}
    assert copied == included
    assert all((ROOT / name).exists() for name in copied)
    (extras,) = (line.removeprefix("ARG EXTRAS=") for line in lines if line.startswith("ARG EXTRAS="))
    assert set(extras.split(",")) <= set(EXTRAS)
    (command,) = (json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD "))
    (name,) = (json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT "))
    assert name[0] in PROJECT["scripts"]
    assert serve_parser().parse_args(command[1:]).run == command[1] == "imagenet"


def test_sdist_and_checkout_build_the_same_wheel(built: Path, wheel: Path) -> None:
    assert contents(wheel) == contents(built / "direct" / wheel.name)
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    texts = {
        path.name for path in ROOT.iterdir() if path.suffix in (".md", ".cff") or path.name in ("LICENSE", "NOTICE")
    }
    assert texts | {"pyproject.toml", "tests/conftest.py", ".ci/run", ".pre-commit-config.yaml", "Dockerfile"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".nbi", ".nbc", ".png", ".pth"))]


def test_metadata_is_complete_and_passes_twine(built: Path, metadata: importlib.metadata.Distribution) -> None:
    twine = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.glob("sppnet-*"))]
    assert subprocess.run(twine, capture_output=True, check=False).returncode == 0
    fields = metadata.metadata
    assert (fields["Name"], fields["Version"]) == ("sppnet", sppnet.__version__)
    assert fields["License-Expression"] == "Apache-2.0"
    assert (fields["Requires-Python"], fields["Author"]) == (">=3.11", "The sppnet developers")
    assert "version" not in PROJECT  # it is in src/sppnet/__init__.py only
    assert set(fields.get_all("Provides-Extra") or ()) == set(EXTRAS)
    (command,) = metadata.entry_points
    assert (command.group, command.name, command.value) == ("console_scripts", "sppnet", "sppnet.cli.main:main")


def test_notice_names_the_version_of_the_embedded_weights() -> None:
    (weights,) = (requirement for requirement in requirements("models") if requirement.name.startswith("efficientnet"))
    assert f"{weights.name} {str(weights.specifier).removeprefix('==')}" in (ROOT / "NOTICE").read_text(
        encoding="utf-8"
    )


def test_citation_has_the_authors_and_the_paper() -> None:
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (content["cff-version"], content["type"], content["license"]) == ("1.2.0", "software", PROJECT["license"])
    assert content["authors"] == PROJECT["authors"]
    assert "10.1109/TPAMI.2015.2389824" in [reference["doi"] for reference in content["references"]]


def test_pre_commit_runs_the_checks_of_ci() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    checks = re.findall(r"^\.venv/bin/(.*)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert [hook["entry"] for hook in repository["hooks"]] == checks
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in repository["hooks"])


def test_doctor_lists_every_package_of_every_extra(metadata: importlib.metadata.Distribution) -> None:
    listed = {
        extra: {canonicalize_name(package.name) for package in packages}
        for extra, packages in environment.packages(metadata).items()
    }
    expected = {extra: names(extra) - names() for extra in EXTRAS if extra not in NOT_FOR_USERS}
    assert listed == {"": names(), **expected}


def installation(wheel: Path, folder: Path, extras: tuple[str, ...]) -> Path:
    """Create an environment with the wheel and links to its requirements; return the `bin` folder."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in distributions(*extras):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(distribution.locate_file(top)))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "-q", str(wheel)], check=True, capture_output=True)
    return folder / "bin"


def run_program(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CXX": "/no/such/compiler", "PYTHONPATH": ""}
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False, env=env)


@pytest.mark.slow
def test_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    image = next(write_classes(tmp_path / "images", 1).rglob("*.png"))
    program = installation(wheel, tmp_path / "models", ("models",)) / "sppnet"
    assert run_program(program, "--version").stdout == f"sppnet {sppnet.__version__}\n"
    doctor = run_program(program, "doctor", "--json")
    content = json.loads(doctor.stdout)
    assert (doctor.returncode, content["ok"]) == (0, True)
    assert all(package["usable"] for extra in ("base", "models") for package in content["packages"][extra])
    assert not all(package["usable"] for package in content["packages"]["serve"])
    predicted = run_program(program, "predict", "imagenet", str(image), "--json")
    assert (predicted.returncode, predicted.stderr.count("Error")) == (0, 0), predicted.stderr
    assert json.loads(predicted.stdout)["label"]


@pytest.mark.slow
def test_server_needs_only_the_extra_serve(wheel: Path, tmp_path: Path) -> None:
    python = installation(wheel, tmp_path / "serve", ("serve",)) / "python"
    page = "import sppnet.serving.app as a, sppnet.serving.server; print(sorted(p.name for p in a._PAGE.iterdir()))"
    done = run_program(python, "-c", page)
    assert "index.html" in done.stdout, done.stderr
