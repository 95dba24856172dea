"""A training in a process of its own that a signal stops right after it has written a checkpoint."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

_SCRIPT = """
import os, sys
from sppnet.training import loop

number, save = int(sys.argv.pop(1)), loop.save_checkpoint

def save_and_stop(*arguments):
    save(*arguments)
    loop.save_checkpoint = save
    os.kill(os.getpid(), number)

loop.save_checkpoint = save_and_stop

from sppnet.cli.main import main

main()
"""


def stop_after_checkpoint(
    arguments: Sequence[str], number: signal.Signals = signal.SIGKILL
) -> "subprocess.CompletedProcess[str]":
    """Run ``sppnet`` with these arguments; the process sends itself the signal after its first checkpoint."""
    command = [sys.executable, "-c", _SCRIPT, str(int(number)), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)
