from sppnet.data.formats.annotations import format_numbers


def test_formats_numbers_without_trailing_zeros() -> None:
    assert format_numbers((1.0, 2.5, -3)) == "(1, 2.5, -3)"
