"""Selection of the device to run a model on."""

import torch


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
        raise ValueError(f"device: expected an available device, got {name!r}; {str(error).splitlines()[0]}") from error
