"""Selection of the device that a model runs on."""

import torch


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the accelerator if there is one and the CPU otherwise.

    Raises:
        ValueError: torch knows no such device, or has none here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
