"""The shorter sides at which a network saw its training images, and the images that it is asked about outside them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from sppnet.classify.network import ClassifierConfig
from sppnet.classify.predict import Prediction
from sppnet.data.batching import Schedule
from sppnet.data.formats.class_folders import Sample
from sppnet.data.resize import Resize
from sppnet.data.sizes import read_sizes
from sppnet.training.options import TrainOptions


def trained_sides(
    samples: Sequence[Sample], options: TrainOptions, policy: Resize, cache: Path | None = None
) -> tuple[int, int] | None:
    """Least and greatest shorter side of the training images, in pixels, as the network saw them.

    Square crops of side s are 7/8 of an image's shorter side, so what they show is as large as in a whole image of
    shorter side 8/7 s: both sides count as seen, and all between.

    Args:
        samples: the training images; where their own sizes matter their headers are read.
        options: of the training.
        policy: the size policy of a frozen backbone's features.
        cache: file that keeps the images' sizes, see :func:`sppnet.data.sizes.read_sizes`.

    Returns:
        None where no image can be read.
    """
    sides = Schedule.parse(options.sizes).sides
    if sides and not options.freeze_backbone:
        return min(sides), round(max(sides) * 8 / 7)
    if not options.freeze_backbone:
        policy = Resize("native", max_pixels=options.max_pixels)
    found, _ = read_sizes((sample.path for sample in samples), cache)
    seen = [min(policy.target_size(*size)) for size in found.values()]
    return (min(seen), max(seen)) if seen else None


def count_outside(config: ClassifierConfig, predictions: Iterable[Prediction], views: str = "full") -> int:
    """How many images were seen at a shorter side below or above `config.trained_sides`.

    Args:
        config: of the network; where it does not know the sides, none are outside.
        predictions: its answers.
        views: with which they were made; views have sizes of their own and are never counted.
    """
    if config.trained_sides is None or views != "full":
        return 0
    least, greatest = config.trained_sides
    return sum(not least <= min(prediction.network_size) <= greatest for prediction in predictions)


def outside_text(config: ClassifierConfig, outside: int, images: int, option: str = "--resize {}") -> str:
    """What a user is told of images outside the trained sides, with the option as it is typed; empty if none are."""
    if not outside or config.trained_sides is None:
        return ""
    least, greatest = config.trained_sides
    return (
        f"{outside} of {images} images were seen at a shorter side outside the {least} to {greatest} pixels that the"
        f" network was trained on; {option.format(f'shorter-side:{greatest}')} brings them inside, and `sppnet evaluate"
        " RUN DATA --sizes 160,224,320` measures what other sizes cost"
    )
