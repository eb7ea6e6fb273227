"""JAX as the jobs use it: float64, one thread, errors as NaN in their own lane. The same random cases in every run."""

import gc
import sys

import pytest
from hypothesis import settings

from retrograd.job import prepare_jax

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
