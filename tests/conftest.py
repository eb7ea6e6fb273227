"""JAX as the jobs use it: float64, one thread, errors as NaN in their own lane. The same random cases in every run."""

from hypothesis import settings

from retrograd.job import prepare_jax

prepare_jax("float64")
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci")
