"""Inventory of the installation: packages, devices and downloaded weights."""

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
import torch
from packaging.requirements import Requirement

from sppnet.backbones.weights import embedded_file
from sppnet.tools.bench import environment as machine
from sppnet.tools.bench import installed_version

_NOT_FOR_USERS = ("all", "dev", "docs")


@dataclass(frozen=True)
class Package:
    """A dependency of sppnet.

    Attributes:
        name: distribution name.
        needed: version specifier, such as ``>=1.6``.
        version: installed version, or None.
        usable: whether the installed version satisfies the specifier.
    """

    name: str
    needed: str
    version: str | None
    usable: bool


@dataclass(frozen=True)
class Device:
    """A torch device.

    Attributes:
        name: torch name, such as ``cuda:0``.
        model: product name.
        memory: size in bytes.
        details: cores, vector width and compilers, as text.
    """

    name: str
    model: str
    memory: int
    details: str


@dataclass(frozen=True)
class Weights:
    """Pretrained weights on disk.

    Attributes:
        source: ``embedded``, ``torch hub`` or ``huggingface``.
        name: file name or network name.
        bytes: size in bytes.
        problem: what is wrong with the weights; None if nothing is, or if they were not checked.
    """

    source: str
    name: str
    bytes: int
    problem: str | None = None


def packages(installed: importlib.metadata.Distribution | None = None) -> dict[str, tuple[Package, ...]]:
    """Return the dependencies of the base installation, under the key "", and of each extra.

    Args:
        installed: distribution to inspect; None for sppnet.
    """
    installed = installed or importlib.metadata.distribution("sppnet")
    requirements = [Requirement(line) for line in installed.requires or ()]
    extras = installed.metadata.get_all("Provides-Extra") or []
    groups = {"": tuple(_look_up(entry) for entry in requirements if _applies(entry, ""))}
    for extra in extras:
        if extra not in _NOT_FOR_USERS:
            added = (entry for entry in requirements if _applies(entry, extra) and not _applies(entry, ""))
            groups[extra] = tuple(_look_up(entry) for entry in added)
    return groups


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _look_up(requirement: Requirement) -> Package:
    version = installed_version(requirement.name)
    usable = version is not None and requirement.specifier.contains(version, prereleases=True)
    return Package(requirement.name, str(requirement.specifier), version, usable)


def devices() -> tuple[Device, ...]:
    """Return the CPU, then each GPU that torch can use."""
    host = machine()["machine"]
    cores = f"{host['cores']} cores, {torch.get_num_threads()} threads, {vector_bits()}-bit vectors"
    available = [Device("cpu", host["cpu"], psutil.virtual_memory().total, cores)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        triton = f"Triton {installed_version('triton')}" if find_spec("triton") else "no Triton: plain torch operators"
        details = f"compute capability {properties.major}.{properties.minor}, {triton}"
        available.append(Device(f"cuda:{index}", properties.name, properties.total_memory, details))
    if torch.backends.mps.is_available():
        available.append(Device("mps", "Apple GPU", torch.mps.recommended_max_memory(), "plain torch operators"))
    return tuple(available)


def vector_bits() -> int:
    """Return the SIMD register width, in bits, that the CPU kernels are compiled for."""
    from numba import config
    from numba.core.codegen import get_host_cpu_features

    override: str | None = config.CPU_FEATURES  # type: ignore[attr-defined, unused-ignore]
    host: str = get_host_cpu_features()  # type: ignore[no-untyped-call]
    features = (host if override is None else override).split(",")
    return 512 if "+avx512f" in features else 256 if "+avx" in features else 128


def weights() -> tuple[Weights, ...]:
    """Return the embedded weights and those that timm has already downloaded."""
    return (_embedded(), *_torch_hub(), *_huggingface())


def _embedded() -> Weights:
    try:
        file = embedded_file()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        return Weights("embedded", "tf_efficientnet_lite0", 0, str(error))
    return Weights("embedded", "tf_efficientnet_lite0", file.stat().st_size)


def _torch_hub() -> Iterator[Weights]:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for file in sorted(folder.glob("*")):
        if file.suffix in (".pth", ".pt", ".safetensors", ".bin"):
            yield Weights("torch hub", file.name, file.stat().st_size)


def _huggingface() -> Iterator[Weights]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder in sorted(Path(HF_HUB_CACHE).glob("models--timm--*")):
        files = {file.resolve() for file in folder.glob("snapshots/*/*") if file.suffix in (".safetensors", ".bin")}
        size = sum(file.stat().st_size for file in files if file.is_file())
        if size:
            yield Weights("huggingface", folder.name.removeprefix("models--").replace("--", "/"), size)
