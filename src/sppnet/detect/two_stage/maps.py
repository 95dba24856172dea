"""Feature maps of images, computed once by a frozen backbone and cached on disk in half precision."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.backbones.modes import evaluation_mode
from sppnet.errors import ImageError
from sppnet.inference.parallel import map_images, map_ordered
from sppnet.progress import track
from sppnet.training.cache import TensorCache, content_digest, format_size, open_cache

_logger = logging.getLogger(__name__)

_VIEWS = ("", "-mirrored")  # suffixes of the names of cached files
_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class CachedMaps:
    """Maps of image files and of their mirror images; see :func:`cache_maps`.

    Attributes:
        cache: open cache.
        digests: digest of the content of each readable file.
        failures: errors of the other files.
    """

    cache: TensorCache
    digests: Mapping[Path, str]
    failures: tuple[ImageError, ...]

    def read(self, path: Path, mirrored: bool = False) -> list[Float[Tensor, "_ _ _"]]:
        """Return the maps (C, H, W) of a file, in float32.

        Raises:
            ImageError: the image file could not be read.
            ValueError: the file of the cache has been deleted or damaged.
        """
        if path not in self.digests:
            raise next(failure for failure in self.failures if failure.path == str(path))
        name = f"{self.digests[path]}{_VIEWS[mirrored]}"
        tensors = self.cache.read(name)
        if tensors is None:
            self.cache.file(name).unlink(missing_ok=True)  # a damaged file is computed again
            raise ValueError(f"cache: the maps of {path} in {self.cache.folder} are missing or damaged; train again")
        return [tensors[name].float() for name in sorted(tensors)]


@contextmanager
def cache_maps(
    network: nn.Module,
    load: Callable[[Path, bool], Float[Tensor, "1 3 _ _"]],
    run: Callable[[Float[Tensor, "1 3 _ _"]], Sequence[Float[Tensor, "1 _ _ _"]]],
    paths: Sequence[Path],
    folder: Path,
    settings: Mapping[str, Any],
    limit: float,
    device: torch.device,
    mirrored: bool = True,
) -> Iterator[CachedMaps]:
    """Compute the missing maps of images, and of their mirror images, and open the cache.

    One image per core is processed at a time. A killed call computes only the missing maps when it is repeated, and
    several runs may use the same folder.

    Args:
        network: network that `run` calls; it is in evaluation mode meanwhile.
        load: function that returns the input of the network for an image, or for its mirror image.
        run: function that returns the maps of an input.
        paths: image files; duplicates have the same maps.
        folder: folder of the caches of all settings.
        settings: everything except the image that the maps depend on, as JSON values.
        limit: largest size of `folder` in bytes.
        device: device of the network.
        mirrored: whether to compute the maps of mirror images.

    Raises:
        ValueError: the maps would exceed the limit or the free disk space.
    """
    paths, views = list(dict.fromkeys(paths)), _VIEWS[: 1 + mirrored]
    digests = dict(zip(paths, map_ordered(content_digest, paths), strict=True))
    failures: list[ImageError] = []
    with open_cache(folder, settings, limit) as cache:

        def is_missing(path: Path) -> bool:
            return not digests[path] or not all(cache.file(f"{digests[path]}{view}").exists() for view in views)

        def load_views(path: Path) -> tuple[Path, list[Tensor] | ImageError]:
            try:
                return path, [load(path, flag) for flag in (False, True)[: len(views)]]
            except ImageError as error:
                return path, error

        def compute(loaded: tuple[Path, list[Tensor] | ImageError]) -> ImageError | int:
            path, inputs = loaded
            if isinstance(inputs, ImageError):
                return inputs
            size = 0
            for view, x in zip(views, inputs, strict=True):
                with torch.inference_mode():
                    maps = [data[0].float().clamp(-_LARGEST, _LARGEST).half() for data in run(x.to(device))]
                tensors = {str(number): data.cpu().contiguous() for number, data in enumerate(maps)}
                if not reserved:
                    reserved.append(path)
                    cache.reserve(len(views) * len(missing), tensors)
                cache.write(f"{digests[path]}{view}", tensors)
                size += sum(data.nbytes for data in tensors.values())
            return size

        missing = [path for path in paths if is_missing(path)]
        reserved: list[Path] = []
        with evaluation_mode(network), closing(map_images(load_views, compute, missing, device)) as results:
            done = len(paths) - len(missing)
            failures += [
                result for result in track(results, "feature maps", len(paths), done) if isinstance(result, ImageError)
            ]
        if missing:
            _logger.info(
                f"computed the feature maps of {len(missing) - len(failures)} of {len(paths)} images; the cache"
                f" {folder} has {format_size(cache.used())}"
            )
        failed = {Path(failure.path) for failure in failures}
        usable = {path: digest for path, digest in digests.items() if digest and path not in failed}
        yield CachedMaps(cache, usable, tuple(failures))
