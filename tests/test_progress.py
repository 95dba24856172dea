"""Progress of long work, reported to a callback."""

from sppnet.progress import on_progress, track


def test_reports_the_start_and_each_processed_item() -> None:
    calls: list[tuple[str, int, int]] = []
    with on_progress(lambda *call: calls.append(call)):
        for item in track(iter("ab"), "images", total=5, done=3):
            assert calls[-1] == ("images", 3 + "ab".index(item), 5)  # reported once processed, not before
    assert calls == [("images", 3, 5), ("images", 4, 5), ("images", 5, 5)]


def test_is_silent_without_a_callback_and_after_the_block() -> None:
    calls: list[tuple[str, int, int]] = []
    with on_progress(lambda *call: calls.append(call)):
        pass
    assert list(track([1, 2], "numbers", 2)) == [1, 2]
    assert not calls


def test_blocks_nest() -> None:
    calls: list[str] = []
    with on_progress(lambda *_: calls.append("outer")):
        with on_progress(None):
            list(track([1], "numbers", 1))
        assert not calls
        list(track([1], "numbers", 1))
    assert calls == ["outer", "outer"]
