"""A time limit for what somebody else wrote: the code of a plug-in, formulas of a model's file.

The Snakefile imports this on every parse: standard library only.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What an environment variable of this name overrides [s]. Loading a plug-in and tracing its functions takes seconds.
VARIABLE, PATIENCE = "RETROGRAD_PATIENCE", 600.0

# It waits for the end of its input, which comes when the other process is through, or is no more.
_WATCH = """
import os, select, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
seconds, process, told, *logs = sys.argv[1:]
if not select.select([0], [], [], float(seconds))[0]:
    for log in logs:
        with open(log, "a", encoding="utf-8") as file:
            file.write(told + "\\n")
    print(told, file=sys.stderr, flush=True)
    os.kill(int(process), signal.SIGKILL)
"""


@contextmanager
def at_most(what: str, advice: str) -> Iterator[None]:
    """Ends this process with a message, on the screen and in the job's log, if what is done within takes too long.

    - `what`: is done. `advice`: what to do about it.

    A second process watches: a loop in compiled code, or in a product of numbers with a billion digits, holds the
    interpreter, so that no handler of a signal and no other thread of Python would ever have its turn.
    """
    try:
        seconds = float(os.environ.get(VARIABLE, ""))
    except ValueError:
        seconds = PATIENCE
    told = f"{what} has taken more than {seconds:g} s and was ended. {advice} {VARIABLE}=SECONDS allows more time."
    logs = [h.baseFilename for h in logging.getLogger("retrograd").handlers if isinstance(h, logging.FileHandler)]
    command = [sys.executable, "-I", "-S", "-c", _WATCH, str(seconds), str(os.getpid()), told, *logs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as watch:
        try:
            yield
        finally:
            assert watch.stdin is not None
            watch.stdin.close()
