"""Wheel, sdist, metadata, extras, container, and commands of installations without extras."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sppnet
from sppnet.cli.serve import serve_parser
from sppnet.tools import environment
from tests.helpers.detection_data import write_voc
from tests.helpers.images import write_classes

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sppnet"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_FOR_USERS = {"all", "dev", "docs"}
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
    info_files = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
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
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "tests/conftest.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".nbi", ".nbc", ".png", ".pth"))]


def test_metadata_is_complete_and_passes_twine(built: Path, metadata: importlib.metadata.Distribution) -> None:
    twine = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.glob("sppnet-*"))]
    assert subprocess.run(twine, capture_output=True, check=False).returncode == 0
    fields = metadata.metadata
    assert (fields["Name"], fields["Version"]) == ("sppnet", sppnet.__version__)
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"
    assert set(fields.get_all("Provides-Extra") or ()) == set(EXTRAS)
    (command,) = metadata.entry_points
    assert (command.group, command.name, command.value) == ("console_scripts", "sppnet", "sppnet.cli.main:main")


def names_of(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_extra_all_includes_every_extra() -> None:
    (line,) = EXTRAS["all"]
    assert Requirement(line).extras == set(EXTRAS) - NOT_FOR_USERS
    assert Requirement(EXTRAS["dev"][0]).extras >= {"all"}


def test_doctor_lists_every_package_of_every_extra(metadata: importlib.metadata.Distribution) -> None:
    listed = {
        extra: {canonicalize_name(package.name) for package in packages}
        for extra, packages in environment.packages(metadata).items()
    }
    expected = {extra: names_of(lines) for extra, lines in EXTRAS.items() if extra not in NOT_FOR_USERS}
    assert listed == {"": names_of(PROJECT["dependencies"]), **expected}


# Hides the packages of all extras. The last three are dependencies of such packages.
WITHOUT_EXTRAS = """
import importlib.util, json, os, sys

ABSENT = {
    "sklearn", "skimage", "cv2", "faster_coco_eval", "matplotlib", "pyarrow", "tensorboard", "onnx", "onnxruntime",
    "onnxscript", "fastapi", "multipart", "python_multipart", "prometheus_client", "uvicorn", "ray",
    "onnx_ir", "starlette", "pydantic",
}

class HideAbsent:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path = [HideAbsent(finder) for finder in sys.meta_path]
from sppnet.tools import selftest
from sppnet.cli.main import run
selftest.SIZES = ((1, 1), (7, 5))
for arguments in json.loads(sys.argv[1]):
    try:
        code = run(arguments)
    except SystemExit as end:
        code = end.code
    for stream in (sys.stdout, sys.stderr):
        print("\\nEND", code, file=stream, flush=True)
"""


def without_extras(*commands: list[str]) -> list[tuple[int, str, str]]:
    """Return the exit code, standard output and standard error of each command."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CXX": "/no/such/compiler", "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    outs, errors = done.stdout.split("\nEND "), done.stderr.split("\nEND ")
    assert len(outs) == len(errors) == len(commands) + 1, done.stderr
    codes = [int(part.partition("\n")[0]) for part in outs[1:]]
    texts = [[parts[0], *(part.partition("\n")[2] for part in parts[1:])] for parts in (outs, errors)]
    return list(zip(codes, *texts, strict=False))


def test_base_commands_work_without_extras(tmp_path: Path) -> None:
    image = next(write_classes(tmp_path, 1).rglob("*.png"))
    helped, diagnosed, predicted = without_extras(["--help"], ["doctor"], ["predict", "imagenet", str(image), "--json"])
    assert helped[0] == diagnosed[0] == predicted[0] == 0
    assert "serve" in helped[1]
    assert "not installed: onnx, onnxscript, onnxruntime" in diagnosed[1]
    assert "all checks passed" in diagnosed[1]
    assert json.loads(predicted[1])["label"]


def test_missing_extras_are_named_with_the_install_command(tmp_path: Path) -> None:
    classes, objects = write_classes(tmp_path / "classes", 2), write_voc(tmp_path / "voc", 2, 1)
    image = str(next(classes.rglob("*.png")))
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(f"path,x1,y1,x2,y2\n{image},1,1,20,20\n")
    (tmp_path / "model.onnx").write_bytes(b"")
    out, run = ["--out", str(tmp_path / "out")], ["--out", str(tmp_path / "run")]
    network = ["--backbone", "test_resnet", "--weights", "none"]
    features = ["features", image, "--boxes", str(boxes), *network, *out]
    detect = ["train", "detect", str(objects), *network, "--finetune", "false", *run]
    needs = [
        ("serve", ["serve", "imagenet"]),
        ("export", ["export", "imagenet", "--out", str(tmp_path / "new.onnx")]),
        ("export", ["verify", str(tmp_path / "model.onnx"), "imagenet"]),
        ("ray", ["predict", "imagenet", image, "--engine", "ray", *out]),
        ("features", [*features, "--format", "parquet"]),
        ("log", ["train", "classify", str(classes), "--tensorboard", "--epochs", "1", *out]),
        ("svm", ["train", "classify", str(classes), "--freeze-backbone", *run]),
        ("detect", detect),
        ("demo", ["demo", *out]),
    ]
    outcomes = without_extras(*(arguments for _, arguments in needs))
    for (extra, arguments), (code, _, error) in zip(needs, outcomes, strict=True):
        assert code in (1, 2), arguments
        assert f'pip install "sppnet[{extra}]"' in " ".join(error.split()), arguments
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()  # trainings fail before they start


def closure(lines: list[str]) -> set[str]:
    """Return the names of the installed distributions that the requirements need, directly or indirectly."""
    pending, done = [(Requirement(line), frozenset({""})) for line in lines], set()
    while pending:
        requirement, requested = pending.pop()
        name, extras = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in requested):
            continue
        if (name, extras) not in done:
            done.add((name, extras))
            pending += [(Requirement(line), extras) for line in importlib.metadata.requires(name) or ()]
    return {name for name, _ in done}


def installation(wheel: Path, folder: Path, extras: tuple[str, ...]) -> Path:
    """Create an environment with the wheel and links to its requirements; return the `bin` folder."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    for name in closure(lines):
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
    program = installation(wheel, tmp_path / "base", ()) / "sppnet"
    assert run_program(program, "--version").stdout == f"sppnet {sppnet.__version__}\n"
    doctor = run_program(program, "doctor", "--json")
    content = json.loads(doctor.stdout)
    assert (doctor.returncode, content["ok"]) == (0, True)
    assert all(package["usable"] for package in content["packages"]["base"])
    assert not any(package["usable"] for package in content["packages"]["serve"])
    predicted = run_program(program, "predict", "imagenet", str(image), "--json")
    assert (predicted.returncode, predicted.stderr.count("Error")) == (0, 0), predicted.stderr
    assert json.loads(predicted.stdout)["label"]


@pytest.mark.slow
def test_server_needs_only_the_extra_serve(wheel: Path, tmp_path: Path) -> None:
    python = installation(wheel, tmp_path / "serve", ("serve",)) / "python"
    page = "import sppnet.serving.app as a, sppnet.serving.server; print(sorted(p.name for p in a._PAGE.iterdir()))"
    done = run_program(python, "-c", page)
    assert "index.html" in done.stdout, done.stderr
