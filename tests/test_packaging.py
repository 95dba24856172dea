"""Wheel, sdist, metadata, extras, container, and installations without some extras."""

import ast
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
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sppnet
from sppnet import errors
from sppnet.cli.serve import serve_parser
from sppnet.cli.vocabulary import COMMANDS
from sppnet.tools import environment
from tests.helpers.detection_data import write_voc
from tests.helpers.images import write_classes
from tests.helpers.installation import EXTRAS, PROJECT, ROOT, distributions, requirements, run_with_extras

SOURCE = ROOT / "src" / "sppnet"
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


def test_extras_include_what_their_names_promise() -> None:
    users = set(EXTRAS) - NOT_FOR_USERS
    (line,) = EXTRAS["all"]
    assert Requirement(line).extras | {"models"} == users
    assert Requirement(EXTRAS["dev"][0]).extras >= {"all"}
    assert names("models") - names() == {canonicalize_name(Requirement(line).name) for line in EXTRAS["models"]}
    for extra in users:  # every command needs the models
        assert names(extra) >= names("models"), extra


def names(*extras: str) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements(*extras)}


def imported_packages(path: Path) -> set[str]:
    """Return the top-level packages that a module imports, also by name through importlib or `import_optional`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=aliases):
                found |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=str(module)):
                found.add(module)
            case ast.Call(
                func=ast.Name(id=function) | ast.Attribute(attr=function), args=[ast.Constant(value=str(name)), *_]
            ) if function in ("import_optional", "import_module", "find_spec"):
                found.add(name)
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names - {"sppnet"}


def test_every_import_is_in_the_base_or_in_its_extra() -> None:
    imported = set().union(*(imported_packages(path) for path in SOURCE.rglob("*.py")))
    owners = importlib.metadata.packages_distributions()
    base = distributions()
    optional = {name for name in imported if not base.intersection(map(canonicalize_name, owners[name]))}
    assert optional - errors.EXTRAS.keys() == set()
    for package, extra in errors.EXTRAS.items():
        listed = {canonicalize_name(Requirement(line).name) for line in EXTRAS[extra]}
        assert listed.intersection(map(canonicalize_name, owners[package])), (package, extra)


def test_installation_page_has_a_row_for_each_extra() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "install.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(EXTRAS.keys() - {"dev", "docs"})


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


LAYERS = """
import json, torch, sppnet

x = torch.randn(2, 32, 37, 50, requires_grad=True)
boxes = [torch.tensor([[0.0, 0.0, 300.0, 400.0]]), torch.tensor([[16.0, 32.0, 200.0, 90.0]])]
functions = [
    sppnet.SpatialPyramidPool((3, 2, 1)),
    lambda x: sppnet.RegionPyramidPool((2, 1))(x, boxes),
    sppnet.ASPP(32, 8),
    sppnet.PyramidPoolingModule(32),
    sppnet.SPP(32, 16),
    sppnet.SPPF(32, 16),
    lambda x: sppnet.pyramid_pool(x, (2, 1)),
    lambda x: sppnet.region_pyramid_pool(x, boxes),
]
for function in functions:
    (gradient,) = torch.autograd.grad(function(x).square().sum(), x)
    assert gradient.isfinite().all() and gradient.any(), function
problems = {}
for name in sppnet.__all__:
    try:
        getattr(sppnet, name)
    except ModuleNotFoundError as error:
        problems[name] = str(error)
print(json.dumps(problems))
"""
LAYER_NAMES = {
    "ASPP",
    "PyramidPoolingModule",
    "RegionPyramidPool",
    "SPP",
    "SPPF",
    "SpatialPyramidPool",
    "pyramid_pool",
    "region_pyramid_pool",
}


def test_layers_work_without_extras_and_other_names_name_theirs() -> None:
    done = run_with_extras((), LAYERS)
    assert done.returncode == 0, done.stderr
    problems = json.loads(done.stdout)
    assert problems.keys().isdisjoint(LAYER_NAMES)
    assert problems.keys() >= {"Classifier", "Detector", "RegionEncoder", "Segmenter", "create_backbone", "load"}
    for name, message in problems.items():
        assert re.fullmatch(r".* need the package \w+, .* pip install \"\.\[models\]\"", message), name


RUN_COMMANDS = """
from sppnet.cli.main import run

for arguments in json.loads(sys.argv[1]):
    if arguments == ["doctor"]:
        from sppnet.tools import selftest
        selftest.SIZES = ((1, 1), (7, 5))
    try:
        code = run(arguments)
    except SystemExit as end:
        code = end.code
    for stream in (sys.stdout, sys.stderr):
        print("\\nEND", code, file=stream, flush=True)
"""


def run_commands(extras: tuple[str, ...], *commands: list[str]) -> list[tuple[int, str, str]]:
    """Return the exit code, standard output and standard error of each command."""
    done = run_with_extras(extras, RUN_COMMANDS, json.dumps(commands))
    outs, streams = done.stdout.split("\nEND "), done.stderr.split("\nEND ")
    assert len(outs) == len(streams) == len(commands) + 1, done.stderr
    codes = [int(part.partition("\n")[0]) for part in outs[1:]]
    texts = [[parts[0], *(part.partition("\n")[2] for part in parts[1:])] for parts in (outs, streams)]
    return list(zip(codes, *texts, strict=False))


def test_commands_without_extras_say_what_to_install() -> None:
    helped, version, *outcomes = run_commands(
        (), ["--help"], ["--version"], *([*name.split(), "x"] for name in COMMANDS)
    )
    assert (helped[0], version[1].strip()) == (0, f"sppnet {sppnet.__version__}")
    for code, out, error in outcomes:
        assert (code, out.strip()) == (1, "")
        assert re.fullmatch(r"sppnet: commands need the package \w+, .* pip install \"\.\[models\]\"", error.strip())


def test_doctor_and_prediction_need_only_the_models(tmp_path: Path) -> None:
    image = next(write_classes(tmp_path, 1).rglob("*.png"))
    diagnosed, predicted = run_commands(("models",), ["doctor"], ["predict", "imagenet", str(image), "--json"])
    assert (diagnosed[0], predicted[0]) == (0, 0), diagnosed[2] + predicted[2]
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
    detect = ["train", "detect", str(objects), *network, "--finetune", "false", *out]
    needs = {
        ("models",): [
            ("serve", ["serve", "imagenet"]),
            ("export", ["export", "imagenet", "--out", str(tmp_path / "new.onnx")]),
            ("export", ["verify", str(tmp_path / "model.onnx"), "imagenet"]),
            ("ray", ["predict", "imagenet", image, "--engine", "ray", *out]),
            ("features", [*features, "--storage", "parquet"]),
            ("train", ["train", "classify", str(classes), "--epochs", "1", *network, *run]),
            ("train", ["train", "classify", str(classes), "--freeze-backbone", *network, *run]),
            ("demo", ["demo", *out]),
        ],
        ("train",): [("detect", detect)],
    }
    for extras, commands in needs.items():
        outcomes = run_commands(extras, *(arguments for _, arguments in commands))
        for (extra, arguments), (code, _, error) in zip(commands, outcomes, strict=True):
            assert code in (1, 2), (arguments, error)
            assert f'pip install ".[{extra}]"' in " ".join(error.split()), (arguments, error)
            assert "Traceback" not in error
    assert not (tmp_path / "run").exists()  # the trainings of classifiers fail before they start


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
