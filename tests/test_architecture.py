"""Structure of the package: layered imports and module sizes."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sppnet

SOURCE = Path(sppnet.__file__).parent
# A package may import packages of earlier lines and its own modules. docs/architecture.md lists the same order.
TIERS = (
    ("errors",),
    ("progress", "devices"),
    ("io",),
    ("ops",),
    ("layers",),
    ("backbones",),
    ("data",),
    ("training",),
    ("inference",),
    ("evaluation",),
    ("features",),
    ("classify", "detect", "segment"),
    ("registry",),
    ("export",),
    ("studies", "distributed", "serving", "tools", "demo"),
    ("cli",),
)
RANKS = {name: rank for rank, tier in enumerate(TIERS) for name in tier}
MODULES = {
    ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in SOURCE.rglob("*.py")
}


def imports(module: str, *, in_functions: bool = False) -> set[str]:
    """Return the modules of the package that a module imports, anywhere or only inside functions."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    names = set()
    for node in (node for scope in (functions if in_functions else [tree]) for node in ast.walk(scope)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else str(node.module) for name in inner}
    return {name for name in names if name in MODULES and name != module}


GRAPH = {module: imports(module) for module in MODULES if module not in ("sppnet", "sppnet.__main__")}


def package(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_point_to_earlier_packages(module: str) -> None:
    own = package(module)
    wrong = [name for name in GRAPH[module] - {"sppnet"} if package(name) != own and RANKS[package(name)] >= RANKS[own]]
    assert not wrong
    if own != "cli":  # other modules may import only the version from the package itself
        assert "sppnet" not in GRAPH[module] or "__version__" in MODULES[module].read_text(encoding="utf-8")


def test_functions_import_only_what_is_compiled_or_optional() -> None:
    """numba, Triton and onnxscript are imported at first use; commands import what they need."""
    modules = [module for module in GRAPH if package(module) not in ("cli", "registry")]
    assert {name for module in modules for name in imports(module, in_functions=True)} == {
        "sppnet.ops.cpu.dispatch",
        "sppnet.ops.gpu.dispatch",
        "sppnet.ops.gpu.forward",
        "sppnet.ops.gpu.backward",
        "sppnet.ops.onnx",
    }


def test_no_import_cycles() -> None:
    remaining = {module: names - {"sppnet"} for module, names in GRAPH.items()}
    while ready := {module for module, names in remaining.items() if not names & remaining.keys()}:
        remaining = {module: names for module, names in remaining.items() if module not in ready}
    assert not remaining, f"cycles among {sorted(remaining)}"


def test_every_package_has_a_tier() -> None:
    entries = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert entries - {"__init__", "__main__"} == RANKS.keys()


def test_files_have_at_most_350_lines_and_folders_25_entries() -> None:
    assert not [name for name, file in MODULES.items() if len(file.read_text(encoding="utf-8").splitlines()) > 350]
    folders = {file.parent for file in MODULES.values()}
    for folder in folders:
        entries = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
        assert len(entries) <= 25, folder


def test_every_public_name_is_imported_from_its_module() -> None:
    tree = ast.parse(MODULES["sppnet"].read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == sppnet._MODULES
    assert sorted(typed) == sorted(sppnet.__all__)
    assert dir(sppnet) == sorted({*vars(sppnet), *sppnet.__all__})


# Each name is resolved in a process of its own, which must not depend on modules that other names import.
_RESOLVE = """
import os, sys
import sppnet

assert "torch" not in sys.modules
import timm, torch, torchvision  # imported once, because it takes seconds

def resolves(name):
    if not (child := os.fork()):
        try:
            getattr(sppnet, name)
            os._exit(0)
        except BaseException as error:
            print(f"{name}: {error}", flush=True)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0

modules = {module: name for name, module in sppnet._MODULES.items()}
assert all([resolves(name) for name in modules.values()])
sys.modules["PIL"] = None
assert not resolves("RegionEncoder")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")
def test_public_names_resolve_in_any_order_and_name_missing_extras() -> None:
    completed = subprocess.run([sys.executable, "-c", _RESOLVE], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    expected = (
        "RegionEncoder: the names of sppnet.features.encoder need the package PIL, which is not installed; install"
    )
    assert completed.stdout.startswith(expected)
    assert "'models'" in completed.stdout
