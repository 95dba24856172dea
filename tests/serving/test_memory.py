"""Limit on the freed memory that the server retains."""

import subprocess
import sys
import threading

import pytest

from sppnet.backbones.backbone import create_backbone
from sppnet.features.encoder import RegionEncoder
from sppnet.serving.tasks import RegionTask
from tests.helpers.polling import wait_until
from tests.helpers.web_clients import LIMITS, client, wait_ready

_SCRIPT = """
import mmap, resource, sys, threading, time
from sppnet.serving import memory
from sppnet.inference.memory import resident_bytes, settled_bytes

PIECES, WORKING = {pieces}, {working}
memory._REST = 0.5
before, stop = settled_bytes(), threading.Event()
thread = threading.Thread(target=memory.bound_memory, args=(stop,))
thread.start()
time.sleep(1)
# Each block is below malloc's mmap threshold, and the remaining blocks keep the heap from shrinking. The other thread
# must not run in between: it could release memory while all blocks are in use.
sys.setswitchinterval(100)
kept = [b"x" * (100_000 + n % 2) for n in range(PIECES)][::16]
sys.setswitchinterval(0.005)
work, offset, deadline = mmap.mmap(-1, 2**26), 0, time.monotonic() + 60
while resident_bytes() > before + PIECES * 50_000 and time.monotonic() < deadline:
    if WORKING:  # memory changes in each step
        work[offset] = 1
        offset += mmap.PAGESIZE
    time.sleep(0.02)
peak, after = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resident_bytes()
stop.set()
thread.join(60)
print(before, peak, after, int(thread.is_alive()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc releases memory on request")
@pytest.mark.parametrize(("pieces", "working"), [(2_000, False), (8_000, True)])
def test_freed_memory_is_released_at_rest_and_under_load(pieces: int, working: bool) -> None:
    script = _SCRIPT.format(pieces=pieces, working=working)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, peak, after, alive = map(int, done.stdout.split())
    assert peak > before + pieces * 80_000
    assert after < before + pieces * 50_000
    assert not alive


def test_memory_thread_runs_until_the_server_stops() -> None:
    def is_running() -> bool:
        return any(thread.name == "memory" for thread in threading.enumerate())

    with client(RegionTask(RegionEncoder(create_backbone("resnet18", None, "none")), LIMITS)) as web:
        wait_ready(web)
        assert is_running()
    wait_until(lambda: not is_running())
