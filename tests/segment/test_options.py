import pytest

from sppnet.segment.options import SegmentOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "deeplab"}, "head: expected one of .*, got 'deeplab'"),
        ({"context": "ppm", "head": "pspnet"}, "context: expected 'aspp' for pspnet, got 'ppm'"),
        ({"rates": (0,)}, "rates: expected dilation rates of at least 1"),
        ({"rates": (6,), "context": "none"}, "rates: .* a head with ASPP"),
        ({"crop": (0, 5)}, "crop: expected a height and a width of at least 1 pixel"),
        ({"scale": (2.0, 1.0)}, "scale: expected 0 < minimum <= maximum <= 10"),
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


def test_rates_are_fitted_to_the_crop() -> None:
    classes = ("a", "b")
    assert SegmentOptions(crop=(256, 320)).config(classes).rates == (2, 5, 7)
    assert SegmentOptions(crop=(1024, 1024)).config(classes).rates == (6, 12, 18)
    assert SegmentOptions(head="pspnet").config(classes).rates == ()
