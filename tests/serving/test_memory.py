"""What a server holds in memory beside what it uses."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sppnet.backbones.backbone import create_backbone
from sppnet.features.encoder import RegionEncoder
from sppnet.serving.tasks import RegionTask
from tests.helpers.web_clients import LIMITS, client, ready

_SCRIPT = """
import mmap, resource, sys, threading, time
from sppnet.serving import memory
from sppnet.inference.memory import resident_bytes, settled_bytes

PIECES, WORKING = {pieces}, {working}
memory._REST = 0.5
begun, stop = settled_bytes(), threading.Event()
thread = threading.Thread(target=memory.bound_memory, args=(stop,))
thread.start()
time.sleep(1)
# Each less than what the system gives and takes by itself; those that stay keep the heap's end where it is. Meanwhile
# the other thread has to wait, or it might see them all in use.
sys.setswitchinterval(100)
kept = [b"x" * (100_000 + n % 2) for n in range(PIECES)][::16]
sys.setswitchinterval(0.005)
work, at, end = mmap.mmap(-1, 2**23), 0, time.monotonic() + 10
while resident_bytes() > begun + PIECES * 50_000 and time.monotonic() < end:
    if WORKING:  # a page more each time
        work[at] = 1
        at += mmap.PAGESIZE
    time.sleep(0.02)
most, left = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resident_bytes()
stop.set()
thread.join(5)
print(begun, most, left, int(thread.is_alive()))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a process can read its size on Linux")
@pytest.mark.parametrize(("pieces", "working"), [(2_000, False), (8_000, True)])
def test_memory_that_was_freed_goes_back_at_rest_and_at_work(pieces: int, working: bool) -> None:
    script = _SCRIPT.format(pieces=pieces, working=working)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    begun, most, left, alive = map(int, ran.stdout.split())
    assert most > begun + pieces * 80_000
    assert left < begun + pieces * 50_000
    assert not alive


def test_a_server_bounds_its_memory_until_it_stops() -> None:
    def bound() -> bool:
        return any(thread.name == "memory" for thread in threading.enumerate())

    with client(RegionTask(RegionEncoder(create_backbone("resnet18", None, "none")), LIMITS)) as web:
        ready(web)
        assert bound()
    end = time.monotonic() + 5
    while bound() and time.monotonic() < end:
        time.sleep(0.05)
    assert not bound()
