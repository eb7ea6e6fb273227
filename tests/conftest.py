"""JAX as the jobs use it: float64, one thread, errors as NaN in their own lane. The same random cases in every run."""

import atexit
import gc
import os
import shutil
import sys
import tempfile

import pytest
from hypothesis import settings

from retrograd.job import prepare_jax

# Of one session, its workers and studies included: half of the time of the suite is compilation, much of it of the same
# programs. jax writes in place: a program that is read half-written is compiled anew, as in the jobs of a study.
if "RETROGRAD_TESTS_COMPILED" not in os.environ:
    os.environ["RETROGRAD_TESTS_COMPILED"] = tempfile.mkdtemp(prefix="retrograd-tests-")
    atexit.register(shutil.rmtree, os.environ["RETROGRAD_TESTS_COMPILED"], ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["RETROGRAD_TESTS_COMPILED"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

prepare_jax("float64")
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci")


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_dropped():
    """Each takes several memory maps: a process that keeps those of all modules dies in the compiler at 65,530 maps."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()
