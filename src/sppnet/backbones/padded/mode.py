"""Exact results for padded batches of images of different sizes, with unmodified networks.

While :class:`PaddedBatch` is active, it intercepts every torch function that the network calls on the batch and tracks,
for each tensor, which cells are valid and whether the padding is zero. Windowed layers get the border values that they
would get for a single image, and means run over valid cells only. Functions without a rule raise
:class:`PaddingError`, which names the calling layer.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sppnet.backbones.padded.ledger import Areas, PaddingError, PaddingState, PaddingTracker, cleared_copy
from sppnet.backbones.padded.rules import AFTER_PADDING, MULTI_INPUT, READS, RULES, plain_name


class PaddedBatch(TorchFunctionMode):
    """Mode in which a network's outputs for a padded batch equal those for the single images.

    Training batch norm uses statistics over the valid cells of the batch, across all processes.

    Args:
        network: network that will be called.
        same: whether it uses TensorFlow's SAME padding, whose amounts depend on the size of each image.
    """

    def __init__(self, network: nn.Module, same: bool) -> None:
        super().__init__()
        self._ledger = PaddingTracker(network, same)
        self._guard = _DispatchGuard(self._ledger) if network not in _CHECKED else None

    def __enter__(self) -> "PaddedBatch":
        if self._guard is not None:
            self._guard.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if self._guard is None:
            return
        self._guard.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if self._guard.error is not None and error is not self._guard.error:
            raise self._guard.error  # TorchScript replaces it with its own error
        if error is None:
            _CHECKED.add(self._ledger.network)

    def enter(self, x: Float[Tensor, "n c h w"], areas: Sequence[tuple[int, int]]) -> Float[Tensor, "n c h w"]:
        """Return the batch with zeros in the padding, and track everything computed from it.

        Args:
            x: images aligned to the top left, with arbitrary values in the padding; it is not modified.
            areas: (height, width) of each image, at most that of `x`.

        Raises:
            PaddingError: the network uses gradient checkpointing, which recomputes activations outside this mode.
        """
        recomputes = any(getattr(layer, "grad_checkpointing", False) for layer in self._ledger.network.modules())
        if recomputes and torch.is_grad_enabled():
            raise self._ledger.refusal("it recomputes activations for the gradient (grad_checkpointing)")
        areas = tuple((height, width) for height, width in areas)
        outside = self._ledger.outside(x, areas)
        return self._ledger.mark(x if outside is None else cleared_copy(x, outside), PaddingState(areas, clean=True))

    def areas(self, x: Float[Tensor, "n c h w"]) -> Areas:
        """Return the valid (rows, columns) of each image of a map computed from the batch.

        Raises:
            PaddingError: the map was not computed from the batch.
        """
        with torch._C.DisableTorchFunction():  # do not intercept the ledger's own calls
            valid = self._ledger.known(x) if self._ledger.follows(x) else None
        if valid is None or valid.dims != (2, 3):
            raise PaddingError("sizes: the network's output is not a map of the images of the batch")
        return valid.areas

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._guard is None:
            return self._apply_rule(func, args, kwargs or {})
        self._guard.paused = True
        try:
            return self._apply_rule(func, args, kwargs or {})
        finally:
            self._guard.paused = False

    def _apply_rule(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        ledger = self._ledger
        tracked = [tensor for tensor in _tensors((*args, *kwargs.values())) if ledger.follows(tensor)]
        if not tracked:
            return func(*args, **kwargs)
        name = plain_name(func)
        padded = any(ledger.deferred(tensor) is not None for tensor in tracked)
        rule = RULES.get(name) if not padded or name in READS else AFTER_PADDING.get(name)
        if rule is None:
            raise ledger.refusal(f"there is no padding rule for {name}{' after a pad' if padded else ''}")
        if kwargs.get("out") is not None:
            raise ledger.refusal(f"{name} has an out argument")
        if len(tracked) > 1 and name not in MULTI_INPUT:
            raise ledger.refusal(f"{name} has more than one map as input")
        try:
            return rule(ledger, func, *args, **kwargs)
        except TypeError:
            try:
                inspect.signature(rule).bind(ledger, func, *args, **kwargs)
            except TypeError as error:
                raise ledger.refusal(f"{name} is called with unsupported arguments ({error})") from None
            raise


class _DispatchGuard(TorchDispatchMode):
    """Dispatch mode that rejects kernels that bypass the rules on tracked tensors, as in TorchScript.

    Intercepting every kernel is slow, so only the first pass of each network is checked.
    """

    def __init__(self, ledger: PaddingTracker) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ledger = ledger
        self.paused = False
        self.error: PaddingError | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.paused and any(self._ledger.follows(tensor) for tensor in _tensors((*args, *kwargs.values()))):
            self.error = self._ledger.refusal(f"{func} bypasses torch functions, for instance in TorchScript")
            raise self.error
        return func(*args, **kwargs)


_CHECKED: WeakSet[nn.Module] = WeakSet()


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
