"""Layers and functions of networks as PyTorch has them, for generated models: what equinox and JAX do otherwise.

Arrays are ordered as PyTorch orders them, weights (out, in, ...) and data (channel, ...), so that a file of weights
fits as it is. As in PyTorch, data may have a batch axis in front where the layer's number of axes tells it. Every
layer is as in evaluation: nothing is random, nothing is learnt while it is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.errors import RetrogradError

# As `padding_mode` names them, and as `jnp.pad` does.
PADDINGS = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _uniform(key: jax.Array, shape: Sequence[int], fan_in: int) -> jax.Array:
    # What torch initialises with; the values are replaced by those of a file.
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    return jax.random.uniform(key, tuple(shape), minval=-bound, maxval=bound)


def _keys(key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    first, second = jax.random.split(jax.random.PRNGKey(0) if key is None else key)
    return first, second


def _want(layer: Any, ok: bool, x: jax.Array, wanted: str) -> None:
    if not ok:
        name = layer if isinstance(layer, str) else type(layer).__name__
        raise RetrogradError(f"{name}: found an input of shape {list(x.shape)}, wanted {wanted}.")


class Linear(eqx.Module):
    """y = x W^T + b over the last axis: (..., in) to (..., out).

    - `weight`: shape (out, in). `bias`: shape (out,) or None.
    """

    weight: jax.Array
    bias: jax.Array | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, key: jax.Array | None = None) -> None:
        first, second = _keys(key)
        self.weight = _uniform(first, (out_features, in_features), in_features)
        self.bias = _uniform(second, (out_features,), in_features) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        n = self.weight.shape[1]
        _want(self, x.ndim > 0 and x.shape[-1] == n, x, f"{n} values along the last axis")
        # A product of a matrix and a vector where there is no batch: in the order in which equinox adds up.
        y = self.weight @ x if x.ndim == 1 else x @ self.weight.T
        return y if self.bias is None else y + self.bias


class Bilinear(eqx.Module):
    """y_o = x^T W_o z + b_o: (..., in1) and (..., in2) to (..., out).

    - `weight`: shape (out, in1, in2). `bias`: shape (out,) or None.
    """

    weight: jax.Array
    bias: jax.Array | None

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        *,
        key: jax.Array | None = None,
    ) -> None:
        first, second = _keys(key)
        self.weight = _uniform(first, (out_features, in1_features, in2_features), in1_features)
        self.bias = _uniform(second, (out_features,), in1_features) if bias else None

    def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
        _, n, m = self.weight.shape
        _want(self, x.ndim > 0 and x.shape[-1] == n, x, f"{n} values along the first input's last axis")
        _want(self, z.ndim == x.ndim and z.shape[-1] == m, z, f"{m} values along the second input's last axis")
        y = jnp.einsum("...i,oij,...j->...o", x, self.weight, z)
        return y if self.bias is None else y + self.bias


class Conv(eqx.Module):
    """Cross-correlation over the axes behind the channels: (channel, *length) or (batch, channel, *length).

    - `weight`: shape (out, in / groups, *kernel). `bias`: shape (out,) or None.
    - `padding`: (before, after) for each axis.
    """

    weight: jax.Array
    bias: jax.Array | None
    stride: tuple[int, ...] = eqx.field(static=True)
    padding: tuple[tuple[int, int], ...] = eqx.field(static=True)
    dilation: tuple[int, ...] = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    padding_mode: str = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        key: jax.Array | None = None,
    ) -> None:
        first, second = _keys(key)
        fan_in = in_channels // groups * math.prod(kernel)
        self.weight = _uniform(first, (out_channels, in_channels // groups, *kernel), fan_in)
        self.bias = _uniform(second, (out_channels,), fan_in) if bias else None
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        self.groups, self.padding_mode = groups, padding_mode

    def __call__(self, x: jax.Array) -> jax.Array:
        dims, channels = len(self.stride), self.weight.shape[1] * self.groups
        right = x.ndim in (dims + 1, dims + 2) and x.shape[-dims - 1] == channels
        _want(self, right, x, f"{channels} channels in front of {dims} axes")
        padding = self.padding
        if self.padding_mode != "zeros":
            x = jnp.pad(x, [(0, 0)] * (x.ndim - dims) + list(padding), PADDINGS[self.padding_mode])
            padding = ((0, 0),) * dims
        y = jax.lax.conv_general_dilated(
            x if x.ndim == dims + 2 else x[None],
            self.weight,
            self.stride,
            padding,
            rhs_dilation=self.dilation,
            feature_group_count=self.groups,
        )
        y = y if self.bias is None else y + self.bias.reshape(-1, *(1,) * dims)
        return y if x.ndim == dims + 2 else y[0]


class ConvTranspose(eqx.Module):
    """The transpose of `Conv` by its input: (channel, *length) or (batch, channel, *length).

    - `weight`: shape (in, out / groups, *kernel). `bias`: shape (out,) or None.
    - `padding`: what is cut at either end of each axis. `output_padding`: what is added at the far end.
    """

    weight: jax.Array
    bias: jax.Array | None
    stride: tuple[int, ...] = eqx.field(static=True)
    padding: tuple[int, ...] = eqx.field(static=True)
    output_padding: tuple[int, ...] = eqx.field(static=True)
    dilation: tuple[int, ...] = eqx.field(static=True)
    groups: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        output_padding: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
        bias: bool = True,
        key: jax.Array | None = None,
    ) -> None:
        first, second = _keys(key)
        fan_in = out_channels // groups * math.prod(kernel)
        self.weight = _uniform(first, (in_channels, out_channels // groups, *kernel), fan_in)
        self.bias = _uniform(second, (out_channels,), fan_in) if bias else None
        self.stride, self.padding, self.output_padding = tuple(stride), tuple(padding), tuple(output_padding)
        self.dilation, self.groups = tuple(dilation), groups

    def __call__(self, x: jax.Array) -> jax.Array:
        dims, (channels, each, *kernel) = len(self.stride), self.weight.shape
        right = x.ndim in (dims + 1, dims + 2) and x.shape[-dims - 1] == channels
        _want(self, right, x, f"{channels} channels in front of {dims} axes")
        # As a correlation of the stretched input: (in, out / g, *k) to (out, in / g, *k), turned around.
        w = self.weight.reshape(self.groups, channels // self.groups, each, *kernel)
        w = jnp.swapaxes(w, 1, 2).reshape(self.groups * each, channels // self.groups, *kernel)
        w = jnp.flip(w, tuple(range(2, 2 + dims)))
        reach = [d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True)]
        y = jax.lax.conv_general_dilated(
            x if x.ndim == dims + 2 else x[None],
            w,
            (1,) * dims,
            [(r - p, r - p + o) for r, p, o in zip(reach, self.padding, self.output_padding, strict=True)],
            lhs_dilation=self.stride,
            rhs_dilation=self.dilation,
            feature_group_count=self.groups,
        )
        y = y if self.bias is None else y + self.bias.reshape(-1, *(1,) * dims)
        return y if x.ndim == dims + 2 else y[0]


class _ChannelNorm(eqx.Module):
    """What `BatchNorm` and `InstanceNorm` hold; they differ in the axes that they are normalised along."""

    weight: jax.Array | None
    bias: jax.Array | None
    running_mean: jax.Array | None
    running_var: jax.Array | None
    eps: float = eqx.field(static=True)
    dims: int = eqx.field(static=True)

    def __init__(self, channels: int, *, dims: int, eps: float, affine: bool, bias: bool, running: bool) -> None:
        self.weight = jnp.ones(channels) if affine else None
        self.bias = jnp.zeros(channels) if affine and bias else None
        self.running_mean = jnp.zeros(channels) if running else None
        self.running_var = jnp.ones(channels) if running else None
        self.eps, self.dims = eps, dims


class BatchNorm(_ChannelNorm):
    """(x - mean) / sqrt(var + eps) * weight + bias of each channel: (batch, channel) or (batch, channel, *length).

    - `weight`, `bias`: shape (channel,), or None.
    - `running_mean`, `running_var`: shape (channel,), from training: no weights, name them in `frozen`. None: mean
      and variance are those of the input, over all axes but the channels'.
    - `dims`: the axes behind the channels; 1 stands for 0 or 1, as in PyTorch.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        right = x.ndim == self.dims + 2 or (self.dims == 1 and x.ndim == 2)
        _want(self, right, x, f"a batch axis, then channels and {self.dims} axes: it has no form without a batch")
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        return _normalised(x, axes, 1, self)


class InstanceNorm(_ChannelNorm):
    """As `BatchNorm`, but by mean and variance of each sample: (channel, *length) or (batch, channel, *length)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        _want(self, x.ndim in (self.dims + 1, self.dims + 2), x, f"channels in front of {self.dims} axes")
        return _normalised(x, tuple(range(x.ndim - self.dims, x.ndim)), x.ndim - self.dims - 1, self)


def _normalised(x: jax.Array, axes: tuple[int, ...], channel: int, norm: _ChannelNorm) -> jax.Array:
    shape = [1] * x.ndim
    shape[channel] = -1
    along = lambda v: jnp.reshape(v, shape)
    if norm.running_mean is None or norm.running_var is None:
        y = _standardised(x, axes, norm.eps)
    else:
        y = (x - along(norm.running_mean)) / jnp.sqrt(along(norm.running_var) + norm.eps)
    y = y if norm.weight is None else y * along(norm.weight)
    return y if norm.bias is None else y + along(norm.bias)


def _standardised(x: jax.Array, axes: tuple[int, ...], eps: float) -> jax.Array:
    # The variance is that of the values themselves, not an estimate: divided by n.
    return (x - jnp.mean(x, axes, keepdims=True)) / jnp.sqrt(jnp.var(x, axes, keepdims=True) + eps)


class LayerNorm(eqx.Module):
    """As `InstanceNorm` over the last axes, with a weight and a bias for each of their entries: (..., *shape).

    - `weight`, `bias`: of the shape of those axes, or None.
    """

    weight: jax.Array | None
    bias: jax.Array | None
    shape: tuple[int, ...] = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, shape: Sequence[int], *, eps: float, affine: bool, bias: bool) -> None:
        self.shape, self.eps = tuple(shape), eps
        self.weight = jnp.ones(self.shape) if affine else None
        self.bias = jnp.zeros(self.shape) if affine and bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        n = len(self.shape)
        _want(self, x.shape[x.ndim - n :] == self.shape, x, f"last axes {list(self.shape)}")
        y = _standardised(x, tuple(range(x.ndim - n, x.ndim)), self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


# -- pooling ------------------------------------------------------------------------------------------
# A window is a product of one window an axis, and so are its maximum and its sum: one axis after the other, by
# gathering, which has derivatives of all orders in all types, as `reduce_window` has not.


def _windows(
    length: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions (window, entry), 0 for the first value, and how far the windows count, (window,).

    A window may begin in front of the first value and end behind the last one. PyTorch counts its entries up to the
    far end of the padding, beyond which only `ceil_mode` reaches.
    """
    span = length + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (count - 1) * stride >= length + padding:
        # The last window has to begin inside of the data or of the padding before it.
        count -= 1
    if count < 1:
        raise RetrogradError(f"A pooling window of {kernel} does not fit in {length} values padded by {padding}.")
    start = np.arange(count) * stride - padding
    counted = np.minimum(start + kernel, length + padding) - start
    return start[:, None] + np.arange(kernel) * dilation, counted


def _gathered(x: jax.Array, axis: int, at: np.ndarray, fill: float) -> jax.Array:
    # Replaces the axis by (window, entry); entries outside of the data are `fill`.
    inside = (at >= 0) & (at < x.shape[axis])
    taken = jnp.take(x, jnp.asarray(np.where(inside, at, 0)), axis=axis)
    mask = inside.reshape(*(1,) * axis, *inside.shape, *(1,) * (x.ndim - axis - 1))
    return jnp.where(jnp.asarray(mask), taken, jnp.asarray(fill, x.dtype))


def _pooled_axes(name: str, x: jax.Array, dims: int) -> range:
    _want(name, x.ndim in (dims + 1, dims + 2), x, f"channels in front of {dims} axes")
    return range(x.ndim - dims, x.ndim)


def max_pool(
    x: jax.Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> jax.Array:
    """Returns the maxima of windows over the last axes: (channel, *length) or (batch, channel, *length)."""
    for axis, k, s, p, d in zip(
        _pooled_axes("max_pool", x, len(kernel)), kernel, stride, padding, dilation, strict=True
    ):
        at, _ = _windows(x.shape[axis], k, s, p, d, ceil_mode)
        x = jnp.max(_gathered(x, axis, at, -np.inf), axis=axis + 1)
    return x


def avg_pool(
    x: jax.Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> jax.Array:
    """Returns the means of windows over the last axes: (channel, *length) or (batch, channel, *length).

    - `count_include_pad`: padded zeros count as values.
    - `divisor`: what the sums are divided by, in place of the number of values.
    """
    for axis, k, s, p in zip(_pooled_axes("avg_pool", x, len(kernel)), kernel, stride, padding, strict=True):
        length = x.shape[axis]
        at, counted = _windows(length, k, s, p, 1, ceil_mode)
        if not count_include_pad:
            counted = np.sum((at >= 0) & (at < length), axis=1)
        x = jnp.sum(_gathered(x, axis, at, 0.0), axis=axis + 1)
        if divisor is None:
            x = x / jnp.asarray(counted, x.dtype).reshape(-1, *(1,) * (x.ndim - axis - 1))
    return x if divisor is None else x / divisor


def lp_pool(x: jax.Array, norm: float, kernel: Sequence[int], stride: Sequence[int], ceil_mode: bool) -> jax.Array:
    """Returns (sum of x^p)^(1/p) over windows of the last axes: (channel, *length) or (batch, channel, *length).

    As PyTorch takes it: the mean of x^p times the size of a whole window, where `ceil_mode` cuts one too.
    """
    power = int(norm) if norm == int(norm) else norm
    mean = avg_pool(x**power, kernel, stride, (0,) * len(kernel), ceil_mode)
    return (mean * math.prod(kernel)) ** (1 / norm)


def adaptive_max_pool(x: jax.Array, size: Sequence[int | None]) -> jax.Array:
    """Returns the maxima of as many windows as `size` says for each of the last axes; None keeps an axis."""
    for axis, n in zip(_pooled_axes("adaptive_max_pool", x, len(size)), size, strict=True):
        if n is not None:
            x = jnp.max(_gathered(x, axis, _adaptive(x.shape[axis], n), -np.inf), axis=axis + 1)
    return x


def adaptive_avg_pool(x: jax.Array, size: Sequence[int | None]) -> jax.Array:
    """Returns the means of as many windows as `size` says for each of the last axes; None keeps an axis."""
    for axis, n in zip(_pooled_axes("adaptive_avg_pool", x, len(size)), size, strict=True):
        if n is not None:
            at = _adaptive(x.shape[axis], n)
            counted = jnp.asarray(np.sum(at >= 0, axis=1), x.dtype)
            total = jnp.sum(_gathered(x, axis, at, 0.0), axis=axis + 1)
            x = total / counted.reshape(-1, *(1,) * (total.ndim - axis - 1))
    return x


def _adaptive(length: int, count: int) -> np.ndarray:
    # Positions (window, entry), -1 behind a window's end: windows differ in size by one where the counts do not divide.
    start = np.arange(count) * length // count
    end = -(-(np.arange(count) + 1) * length // count)
    at = start[:, None] + np.arange(int(np.max(end - start)))
    return np.where(at < end[:, None], at, -1)


# -- functions ----------------------------------------------------------------------------------------


def flatten(x: jax.Array, start_dim: int = 0, end_dim: int = -1) -> jax.Array:
    """Returns x with its axes from `start_dim` to `end_dim`, both included, made one."""
    if x.ndim == 0:
        return x.reshape(1)
    start, end = (dim + x.ndim if dim < 0 else dim for dim in (start_dim, end_dim))
    _want("flatten", 0 <= start <= end < x.ndim, x, f"axes {start_dim} to {end_dim}")
    return x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :])


def _implicit_axis(x: jax.Array) -> int:
    # What PyTorch takes where no axis is given.
    return 0 if x.ndim in (0, 1, 3) else 1


def softmax(x: jax.Array) -> jax.Array:
    """Returns exp(x) / sum(exp(x)) along the axis that PyTorch takes where none is given; shape kept."""
    return jax.nn.softmax(x, axis=_implicit_axis(x))


def log_softmax(x: jax.Array) -> jax.Array:
    """Returns the logarithm of `softmax`; shape kept."""
    return jax.nn.log_softmax(x, axis=_implicit_axis(x))


def softplus(x: jax.Array, beta: float = 1.0, threshold: float = 20.0) -> jax.Array:
    """Returns log(1 + exp(beta x)) / beta, and x itself where beta x is above the threshold; shape kept."""
    return jnp.where(x * beta > threshold, x, jax.nn.softplus(x * beta) / beta)


def hardtanh(x: jax.Array, min_val: float = -1.0, max_val: float = 1.0) -> jax.Array:
    """Returns x cut off at both values, with derivative 0 there; shape kept."""
    return jnp.where(x >= max_val, max_val, jnp.where(x <= min_val, min_val, x))


def tanhshrink(x: jax.Array) -> jax.Array:
    """Returns x - tanh(x); shape kept."""
    return x - jnp.tanh(x)
