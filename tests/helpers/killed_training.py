"""A training in a process of its own that a signal stops right after it has written a checkpoint."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

_SCRIPT = """
import os, sys
from sppnet.cli.main import main
from sppnet.training import loop

number, after, save_checkpoint = int(sys.argv[1]), sys.argv[2], loop.save_checkpoint

def save_and_stop(out, module, optimizer, progress, average):
    save_checkpoint(out, module, optimizer, progress, average)
    if after in ("", f"{progress.epoch},{progress.step}"):
        loop.save_checkpoint = save_checkpoint
        os.kill(os.getpid(), number)

if after:
    loop._SAVE_SECONDS = -1  # a checkpoint after every batch
loop.save_checkpoint = save_and_stop
main(sys.argv[3:])
"""


def stop_after_checkpoint(
    arguments: Sequence[str], number: signal.Signals = signal.SIGKILL, after: tuple[int, int] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run ``sppnet`` with these arguments; the process sends itself the signal after a checkpoint.

    Args:
        arguments: a training command.
        number: the signal.
        after: (epochs, steps of the next epoch) that the checkpoint contains; None for the first checkpoint.
    """
    place = "" if after is None else f"{after[0]},{after[1]}"
    command = [sys.executable, "-c", _SCRIPT, str(int(number)), place, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
