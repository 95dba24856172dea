"""Selection of the device to run a model on."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

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


def fast_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which networks compute in bfloat16 if the device has instructions for it, else in float32."""
    if device.type == "cuda" or (device.type == "cpu" and _cpu_has_bfloat16()):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@cache
def _cpu_has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 matrices, by AVX-512 or AMX instructions."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public functions for it
    return any(getattr(torch.cpu, name, bool)() for name in names)
