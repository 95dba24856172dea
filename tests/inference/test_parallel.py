import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from sppnet.inference.parallel import map_images, map_ordered

CPU = torch.device("cpu")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_results_are_in_order_and_items_overlap() -> None:
    meeting = threading.Barrier(3, timeout=20)

    def work(number: int) -> int:
        meeting.wait()  # fails unless three calls run at the same time
        time.sleep(0.01 * (3 - number % 3))
        return number * number

    assert list(map_ordered(work, range(12))) == [number * number for number in range(12)]


@pytest.mark.usefixtures("three_threads")
def test_operators_use_one_thread_and_thread_counts_are_restored() -> None:
    counts = set(map_ordered(lambda _: (torch.ones(100_000).sum(), torch.get_num_threads())[1], range(9)))
    assert counts == {1}
    assert torch.get_num_threads() == 3
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [3]


@pytest.mark.usefixtures("three_threads")
def test_few_items_are_read_ahead() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    results = map_ordered(lambda number: number, items())
    assert next(results) == 0
    assert len(read) <= 7
    results.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_errors_are_raised_in_place_and_stop_the_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    started = []

    def work(number: int) -> float:
        started.append(number)
        return 1 / (number - 4)

    results = map_ordered(work, range(100))
    try:
        assert [next(results) for _ in range(4)] == [1 / (number - 4) for number in range(4)]
        with pytest.raises(ZeroDivisionError):
            next(results)
    finally:
        torch.set_num_threads(before)
    assert len(started) < 15
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


@pytest.mark.usefixtures("three_threads")
def test_large_items_are_processed_alone_and_shares_are_limited() -> None:
    lock, running, most = threading.Lock(), [0.0], [0.0]
    shares = [0.3, 0.4, 2.0, 0.6, 0.6, 0.1, 0.5, 5.0]

    def work(share: float) -> tuple[float, bool]:
        with lock:
            running[0] += share
            if share <= 1:
                most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= share
            alone = abs(running[0]) < 1e-9
        return share, threading.current_thread() is threading.main_thread() and alone

    results = list(map_ordered(work, shares, lambda share: share))
    assert [share for share, _ in results] == shares
    assert [share for share, in_caller in results if in_caller] == [2.0, 5.0]
    assert 0.7 <= most[0] <= 1


def test_only_loading_runs_in_threads_for_other_devices() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for device, in_caller in (("cpu", False), ("meta", True)):
            places = list(
                map_images(
                    lambda _: threading.current_thread() is threading.main_thread(),
                    lambda loaded: (loaded, threading.current_thread() is threading.main_thread()),
                    range(3),
                    torch.device(device),
                )
            )
            assert places == [(False, in_caller)] * 3
    finally:
        torch.set_num_threads(before)


def test_ctrl_c_stops_after_the_running_items() -> None:
    program = """
        import time, torch
        from sppnet.inference.parallel import map_ordered
        torch.set_num_threads(2)
        def work(number):
            print(number, flush=True)
            time.sleep(0.5)
        try:
            list(map_ordered(work, range(1000)))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        rest = process.communicate(timeout=30)[0].splitlines()
    assert rest[-1] == "interrupted"
    assert len(rest) <= 4
