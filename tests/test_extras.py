"""Extras: the packages in each, the imports that need them, and what works without them."""

import ast
import importlib.metadata
import json
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sppnet
from sppnet import errors
from sppnet.cli.vocabulary import COMMANDS
from tests.helpers.detection_data import write_voc
from tests.helpers.images import write_classes
from tests.helpers.installation import EXTRAS, NOT_FOR_USERS, ROOT, SOURCE, distributions, names, run_with_extras


def test_extras_include_what_their_names_promise() -> None:
    users = set(EXTRAS) - NOT_FOR_USERS
    (line,) = EXTRAS["all"]
    assert Requirement(line).extras | {"models", "supervision"} == users
    assert Requirement(EXTRAS["dev"][0]).extras >= {"all"}
    assert names("models") - names() == {canonicalize_name(Requirement(line).name) for line in EXTRAS["models"]}
    for extra in users:  # every command needs the models
        assert names(extra) >= names("models"), extra


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
    owners = {"supervision": ["supervision"], **importlib.metadata.packages_distributions()}  # it need not be installed
    base = distributions()
    optional = {name for name in imported if not base.intersection(map(canonicalize_name, owners[name]))}
    assert optional - errors.EXTRAS.keys() == set()
    for package, extra in errors.EXTRAS.items():
        listed = {canonicalize_name(Requirement(line).name) for line in EXTRAS[extra]}
        assert listed.intersection(map(canonicalize_name, owners[package])), (package, extra)


def test_installation_page_has_a_row_for_each_extra() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "install.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(EXTRAS.keys() - {"dev", "docs"})


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
    detect = ["train", "detect", str(objects), *network, "--method", "spp", "--finetune", "false", *out]
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
