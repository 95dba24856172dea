"""What the installation stands on: packages, devices and weights. Everything is found by looking."""

import importlib.metadata
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from packaging.requirements import Requirement

from sppnet.backbones.weights import embedded_file
from sppnet.tools.bench import environment as machine

_NOT_FOR_USERS = ("all", "dev", "docs")


@dataclass(frozen=True)
class Package:
    """A package that sppnet uses.

    Attributes:
        name: as pip has it.
        needed: versions that will do, such as ``>=1.6``.
        version: that is installed; None for none.
        usable: whether one is installed that will do.
    """

    name: str
    needed: str
    version: str | None
    usable: bool


@dataclass(frozen=True)
class Device:
    """A device of torch.

    Attributes:
        name: as torch has it, such as ``cuda:0``.
        model: what its maker calls it.
        memory: bytes that it has; None where torch does not say.
        details: cores, vectors, compilers, in words.
    """

    name: str
    model: str
    memory: int | None
    details: str


@dataclass(frozen=True)
class Weights:
    """Weights on the disk.

    Attributes:
        source: ``embedded``, ``torch hub`` or ``huggingface``.
        name: of the file or of the network.
        bytes: how many there are.
        problem: what is wrong with them; None for nothing, or where it was not looked at.
    """

    source: str
    name: str
    bytes: int
    problem: str | None = None


def packages(installed: importlib.metadata.Distribution | None = None) -> dict[str, tuple[Package, ...]]:
    """The packages of the base installation, under the name "", and of each extra.

    Args:
        installed: whose metadata are read; None for sppnet's.
    """
    installed = installed or importlib.metadata.distribution("sppnet")
    lines = [Requirement(line) for line in installed.requires or ()]
    extras = installed.metadata.get_all("Provides-Extra") or []
    found = {"": tuple(_look_up(line) for line in lines if _applies(line, ""))}
    for extra in extras:
        if extra not in _NOT_FOR_USERS:
            own = (line for line in lines if _applies(line, extra) and not _applies(line, ""))
            found[extra] = tuple(_look_up(line) for line in own)
    return found


def _applies(line: Requirement, extra: str) -> bool:
    return line.marker is None or line.marker.evaluate({"extra": extra})


def _look_up(requirement: Requirement) -> Package:
    version = _version(requirement.name)
    usable = version is not None and requirement.specifier.contains(version, prereleases=True)
    return Package(requirement.name, str(requirement.specifier), version, usable)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> tuple[Device, ...]:
    """The CPU, then each GPU that torch can use."""
    about = machine()["machine"]
    cores = f"{about['cores']} cores, {torch.get_num_threads()} threads, vectors of {vector_bits()} bits"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    found = [Device("cpu", about["cpu"], memory, cores)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        triton = f"Triton {_version('triton')}" if find_spec("triton") else "no Triton: plain torch serves"
        details = f"compute capability {properties.major}.{properties.minor}, {triton}"
        found.append(Device(f"cuda:{index}", properties.name, properties.total_memory, details))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", torch.mps.recommended_max_memory(), "plain torch serves"))
    return tuple(found)


def vector_bits() -> int:
    """Width of the registers that the CPU kernels are compiled for."""
    from numba import config
    from numba.core.codegen import get_host_cpu_features

    asked: str | None = config.CPU_FEATURES  # type: ignore[attr-defined, unused-ignore]
    host: str = get_host_cpu_features()  # type: ignore[no-untyped-call]
    features = (host if asked is None else asked).split(",")
    return 512 if "+avx512f" in features else 256 if "+avx" in features else 128


def weights() -> tuple[Weights, ...]:
    """The embedded weights and those that timm has downloaded before."""
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
