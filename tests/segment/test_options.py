import subprocess
import sys

import pytest

from sppnet.segment.options import SegmentOptions, View


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "deeplab"}, "head: expected one of .*, got 'deeplab'"),
        ({"context": "ppm", "head": "pspnet"}, "context: expected 'aspp' for pspnet, got 'ppm'"),
        ({"rates": (0,)}, "rates: expected dilation rates of at least 1"),
        ({"rates": (6,), "context": "none"}, "rates: .* a head with ASPP"),
        ({"crop": (0, 5)}, "crop: expected a height and a width of at least 1 pixel"),
        ({"scale_range": (2.0, 1.0)}, "scale_range: expected 0 < minimum <= maximum <= 10"),
        ({"jitter": 1.0}, r"jitter: expected a number in \[0, 1\)"),
        ({"output_stride": 4}, "output_stride: expected 8, 16 or 32, got 4"),
        ({"head": "deeplabv2", "norm": "group"}, "norm: expected safe, unused by deeplabv2, got group"),
        ({"workers": -1}, "workers: expected at least 0, got -1"),
        ({"schedule": "polly"}, "schedule: expected one of .*, got 'polly'; did you mean 'poly'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_illegal_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_factors": ()}, "scale_factors: expected factors in 0.1..10"),
        ({"scale_factors": (0.05,)}, "scale_factors: expected factors in 0.1..10"),
        ({"overlap": -1}, "overlap: expected at least 0, got -1"),
        ({"tile": 64, "flip": True}, "tile: expected None if scale_factors or flip is set, got 64"),
    ],
)
def test_rejects_illegal_views(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        View(**options)  # type: ignore[arg-type]


def test_options_and_parser_do_not_import_torch() -> None:
    code = "import sys, sppnet.cli.segment; sppnet.cli.segment.train_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
