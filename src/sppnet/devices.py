"""Selection of the device to run a model on."""

import torch

from sppnet.errors import did_you_mean

_NAMES = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str) -> torch.device:
    """Return the named device; ``auto`` is the accelerator if one is available, otherwise the CPU.

    Raises:
        ValueError: invalid name, or the device is not available.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        hint = "" if name.partition(":")[0] in _NAMES else did_you_mean(name, _NAMES)
        hint = hint or f"; {str(error).splitlines()[0]}"
        raise ValueError(f"device: expected an available device, got {name!r}{hint}") from error
