"""Selection of a device by name."""

import pytest
import torch

from sppnet.devices import pick_device


def test_named_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("meta") == torch.device("meta")


def test_auto_prefers_the_accelerator() -> None:
    expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert pick_device("auto") == expected


@pytest.mark.parametrize("name", ["abacus", "cuda:99", ""])
def test_rejects_unavailable_devices(name: str) -> None:
    with pytest.raises(ValueError, match=f"^device: expected an available device, got '{name}'; "):
        pick_device(name)
