"""Range of shorter sides in training, and the warning about images outside this range."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from sppnet.classify.network import ClassifierConfig
from sppnet.classify.options import ClassifyOptions
from sppnet.classify.predict import ClassificationResult
from sppnet.data.formats.classification import Sample
from sppnet.data.resize import Resize
from sppnet.data.schedule import Schedule
from sppnet.data.sizes import read_sizes
from sppnet.inference.results import Failure


def trained_sides(
    samples: Sequence[Sample], options: ClassifyOptions, policy: Resize, cache: Path | None = None
) -> tuple[int, int] | None:
    """Return the (smallest, largest) shorter side of the network's training inputs, in pixels.

    A square crop of side s covers 7/8 of an image's shorter side, so its objects are as large as in a whole image of
    shorter side 8/7 s. The range therefore extends from s to 8/7 s.

    Args:
        samples: training images; their headers are read if the range depends on their sizes.
        options: training options.
        policy: resize policy of the vectors of a frozen backbone.
        cache: file that caches image sizes, see :func:`sppnet.data.sizes.read_sizes`.

    Returns:
        The range, or None if no image can be read.
    """
    sides = Schedule.parse(options.sizes).sides
    if sides and not options.frozen:
        return min(sides), round(max(sides) * 8 / 7)
    if not options.frozen:
        policy = Resize("native", max_pixels=options.max_pixels)
    sizes, _ = read_sizes((sample.path for sample in samples), cache)
    shorter_sides = [min(policy.target_size(*size)) for size in sizes.values()]
    return (min(shorter_sides), max(shorter_sides)) if shorter_sides else None


def count_outside(
    config: ClassifierConfig, results: Iterable[ClassificationResult | Failure], views: str = "full"
) -> int:
    """Count the images that were classified at a shorter side over 10 % outside `config.trained_sides`.

    Args:
        config: configuration of the classifier; the count is 0 if its range is unknown.
        results: results of the classifier; failures are not counted.
        views: views of the results; the count is 0 for all except ``full``, because they have fixed sizes.
    """
    if config.trained_sides is None or views != "full":
        return 0
    smallest, largest = config.trained_sides
    sides = (min(result.network_size) for result in results if isinstance(result, ClassificationResult))
    return sum(11 * side < 10 * smallest or 10 * side > 11 * largest for side in sides)


def outside_warning(config: ClassifierConfig, outside: int, images: int, option: str = "--resize {}") -> str:
    """Return the warning about `outside` of `images` images, or ""; `option` is the option as the user writes it."""
    if not outside or config.trained_sides is None:
        return ""
    smallest, largest = config.trained_sides
    return (
        f"{outside} of {images} images were classified at a shorter side outside the {smallest} to {largest} pixels"
        f" that the network was trained on; {option.format(f'shorter-side:{largest}')} resizes them into this range,"
        " and `sppnet evaluate RUN DATA --compare 160,224,320` measures the accuracy at other sizes"
    )
