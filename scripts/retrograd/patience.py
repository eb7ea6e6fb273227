"""A time limit for what somebody else wrote: the code of a plug-in, formulas of a model's file.

The Snakefile imports this on every parse: standard library only.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Loading a plug-in and tracing its functions takes seconds. An environment variable overrides it [s].
VARIABLE, PATIENCE = "RETROGRAD_PATIENCE", 300.0

# Of each line: how long to wait for the next one, and what to say if none comes. The end of the input is the end of the
# other process, for whatever reason.
_WATCH = """
import json, os, select, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
seconds, buffer = None, b""
while True:
    if not select.select([0], [], [], seconds)[0]:
        for log in logs:
            with open(log, "a", encoding="utf-8") as file:
                file.write(told + "\\n")
        print(told, file=sys.stderr, flush=True)
        os.kill(int(sys.argv[1]), signal.SIGKILL)
        break
    more = os.read(0, 65536)
    if not more:
        break
    *lines, buffer = (buffer + more).split(b"\\n")
    for line in lines:
        seconds, told, logs = json.loads(line)
"""

_watch: subprocess.Popen[bytes] | None = None
_watching = False


@contextmanager
def at_most(what: str, advice: str) -> Iterator[None]:
    """Ends this process with a message, on the screen and in the job's log, if what is done within takes too long.

    - `what`: is done. `advice`: what to do about it.

    A second process watches, one for all uses: a loop in compiled code, or a product of numbers with a billion digits,
    holds the interpreter, so that no handler of a signal and no other thread of Python would ever have its turn.
    """
    global _watching
    if _watching:
        yield
        return
    try:
        seconds = float(os.environ.get(VARIABLE, ""))
    except ValueError:
        seconds = PATIENCE
    told = f"{what} has taken more than {seconds:g} s and was ended. {advice} {VARIABLE}=SECONDS allows more time."
    logs = [h.baseFilename for h in logging.getLogger("retrograd").handlers if isinstance(h, logging.FileHandler)]
    _watching = True
    try:
        _tell(seconds, told, logs)
        yield
    finally:
        _watching = False
        _tell(None, "", [])


def _tell(seconds: float | None, told: str, logs: list[str]) -> None:
    global _watch
    # Where no process can be started there is no limit, which is no reason to compute nothing.
    with suppress(OSError):
        if _watch is None:
            command = [sys.executable, "-I", "-S", "-c", _WATCH, str(os.getpid())]
            _watch = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            atexit.register(_end)
        assert _watch.stdin is not None
        _watch.stdin.write(json.dumps([seconds, told, logs]).encode() + b"\n")
        _watch.stdin.flush()


def _end() -> None:
    if _watch is not None and _watch.stdin is not None:
        with suppress(OSError):
            _watch.stdin.close()
        _watch.wait()
