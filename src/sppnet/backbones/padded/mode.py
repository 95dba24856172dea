"""Exact answers for images of different sizes padded into one batch, from networks that know nothing of it.

While :class:`PaddedBatch` is active, each torch function that a network calls on the batch is seen, and what is known
of the padding goes along with the tensors: which cells belong to images, and whether the others are zero. Layers that
look at neighbours get what they would see at the end of the image alone; means run over valid cells only. A function
for which no rule is known is refused, with the layer that called it.
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

from sppnet.backbones.padded.ledger import (
    Areas,
    Ledger,
    PaddingError,
    Valid,
    cleared_copy,
)
from sppnet.backbones.padded.rules import (
    AFTER_PADDING,
    OF_SEVERAL,
    READS,
    RULES,
    plain_name,
)


class PaddedBatch(TorchFunctionMode):
    """While active, a network's answers for each image of a padded batch are those that the image gets alone.

    Batch norm in training takes its statistics over the valid cells of the batch, of all processes where there are
    several.

    Args:
        network: what is going to be called.
        same: whether it pads by TensorFlow's SAME rule, whose amounts depend on the size of each image.
    """

    def __init__(self, network: nn.Module, same: bool) -> None:
        super().__init__()
        self._ledger = Ledger(network, same)
        self._watch = _Watch(self._ledger) if network not in _WATCHED else None

    def __enter__(self) -> "PaddedBatch":
        if self._watch is not None:
            self._watch.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if self._watch is None:
            return
        self._watch.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if self._watch.refused is not None and error is not self._watch.refused:
            raise self._watch.refused  # a script that was stopped raises an error of its own
        if error is None:
            _WATCHED.add(self._ledger.network)

    def enter(self, x: Float[Tensor, "n c h w"], areas: Sequence[tuple[int, int]]) -> Float[Tensor, "n c h w"]:
        """The batch with zeros in its padding, whatever was there; what comes of it is followed.

        Args:
            x: images at the top left, each with padding below and to the right.
            areas: (height, width) of each image, within that of `x`.

        Raises:
            PaddingError: the network computes its activations again for the gradient, when nothing is followed.
        """
        again = any(getattr(layer, "grad_checkpointing", False) for layer in self._ledger.network.modules())
        if again and torch.is_grad_enabled():
            raise self._ledger.refusal("its activations are computed again for the gradient (grad_checkpointing)")
        areas = tuple((height, width) for height, width in areas)
        outside = self._ledger.outside(x, areas)
        return self._ledger.mark(x if outside is None else cleared_copy(x, outside), Valid(areas, clean=True))

    def areas(self, x: Float[Tensor, "n c h w"]) -> Areas:
        """Valid (rows, columns) of each image of a map that came from the batch.

        Raises:
            PaddingError: the map came from elsewhere.
        """
        with torch._C.DisableTorchFunction():  # what the book asks of the map is no layer
            valid = self._ledger.known(x) if self._ledger.follows(x) else None
        if valid is None or valid.dims != (2, 3):
            raise PaddingError("sizes: the network's map does not follow from the images of the batch")
        return valid.areas

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._watch is None:
            return self._follow(func, args, kwargs or {})
        self._watch.trusts = True
        try:
            return self._follow(func, args, kwargs or {})
        finally:
            self._watch.trusts = False

    def _follow(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        book = self._ledger
        followed = [tensor for tensor in _tensors((*args, *kwargs.values())) if book.follows(tensor)]
        if not followed:
            return func(*args, **kwargs)
        name = plain_name(func)
        padded = any(book.deferred(tensor) is not None for tensor in followed)
        rule = RULES.get(name) if not padded or name in READS else AFTER_PADDING.get(name)
        if rule is None:
            why = "comes after a padding" if padded else "may look at other cells, and no rule is known for it"
            raise book.refusal(f"{name} {why}")
        if kwargs.get("out") is not None:
            raise book.refusal(f"{name} writes into another tensor")
        if len(followed) > 1 and name not in OF_SEVERAL:
            raise book.refusal(f"{name} takes more than one map of the images")
        try:
            return rule(book, func, *args, **kwargs)
        except TypeError:
            try:
                inspect.signature(rule).bind(book, func, *args, **kwargs)
            except TypeError as error:
                raise book.refusal(f"{name} is called in a way for which no rule is known ({error})") from None
            raise


class _Watch(TorchDispatchMode):
    """Refuses what reaches a tensor of the batch past the torch functions, as scripts do.

    It sees every kernel that is called, which takes time, so it looks at the first pass of a network alone.
    """

    def __init__(self, book: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._book = book
        self.trusts = False
        self.refused: PaddingError | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.trusts and any(self._book.follows(tensor) for tensor in _tensors((*args, *kwargs.values()))):
            self.refused = self._book.refusal(f"{func} is called where it cannot be followed, as from a script")
            raise self.refused
        return func(*args, **kwargs)


_WATCHED: WeakSet[nn.Module] = WeakSet()


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
