"""JAX as the jobs use it: float64, one thread, errors as NaN in their own lane."""

from retrograd.job import prepare_jax

prepare_jax("float64")
