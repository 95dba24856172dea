"""Commands of the command line, in the order of ``sppnet --help``, and names that have changed."""

from typing import NamedTuple


class Command(NamedTuple):
    """A command.

    Attributes:
        module: module of `sppnet.cli` with the functions `<function>_parser` and `<function>`.
        function: name of the function that runs the command.
        help: what the command does, in one line.
        saved: what an interrupted command leaves behind; ``{out}`` stands for its output folder.
    """

    module: str
    function: str
    help: str
    saved: str = "nothing was written"


_CHECKPOINT = "{out} keeps the last checkpoint; run the same command with --resume to continue"
_FILES = "{out} keeps the finished parts; run the same command again to continue"

COMMANDS = {
    "demo": Command("demo", "demo", "classify photographs and write an illustrated report"),
    "check": Command("check", "check_dataset", "list the problems of a data set, file by file"),
    "convert": Command("convert", "convert", "write a data set of boxes in another format"),
    "train classify": Command("classify", "train", "train a classifier on images in class folders", _CHECKPOINT),
    "train detect": Command("detect", "train", "train a detector on images with boxes", _CHECKPOINT),
    "train segment": Command("segment", "train", "train a segmenter on images with masks", _CHECKPOINT),
    "evaluate": Command("inference", "evaluate", "score a model on annotated images"),
    "predict": Command("inference", "predict", "apply a model to images", "results printed so far are complete"),
    "features": Command("features", "features", "write feature vectors of images or of boxes in them", _FILES),
    "compare detectors": Command("compare_detectors", "compare", "compare SPP-net with R-CNN on your data", _FILES),
    "compare pooling": Command("compare_pooling", "pooling", "compare pooling methods on your images", _FILES),
    "compare sizes": Command("compare_sizes", "sizes", "compare training image sizes on your images", _FILES),
    "cache list": Command("cache", "show", "list cached vectors, feature maps and proposals"),
    "cache clear": Command("cache", "clear", "delete cached vectors, feature maps and proposals", "some were deleted"),
    "export": Command("export", "export", "write an ONNX file that accepts any image size"),
    "verify": Command("export", "verify", "compare an ONNX file with the run it was exported from"),
    "serve": Command("serve", "serve", "serve a model over HTTP, with a web page"),
    "doctor": Command("doctor", "doctor", "test the installation, or a network with padded batches"),
    "bench": Command("bench", "bench", "time the pooling operators on a given shape"),
}

RENAMED_COMMANDS = {"compare-detectors": "compare detectors", "compare-sizes": "compare sizes"}
RENAMED_OPTIONS = {
    "train detect": {"--rule": "--cell-rule"},
    "train segment": {"--scale": "--scale-range"},
    "evaluate": {"--sizes": "--compare", "--scales": "--scale-factors", "--head": "--head-dtype"},
    "predict": {
        "--scales": "--scale-factors",
        "--head": "--head-dtype",
        "--output": "--write",
        "--max-pixels": "--max-image-pixels",
    },
    "features": {"--rule": "--cell-rule", "--format": "--storage"},
    "compare detectors": {"--images": "--max-images"},
    "export": {"--sizes": "--num-sizes"},
    "verify": {"--sizes": "--num-sizes"},
    "serve": {"--scale": "--scales", "--engine": "--runtime", "--max-pixels": "--max-image-pixels"},
    "doctor": {"--images": "--batch"},
    "bench": {"--boxes": "--num-boxes"},
}
