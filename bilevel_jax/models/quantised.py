"""A frozen base in fewer bits: blocks of a matrix's column share a scale.

    int8   value * scale,           scale = max |w| / 127 of the block
    nf4    code_book[code] * scale, scale = max |w| of the block

NF4 is QLoRA's (Dettmers et al., arXiv:2305.14314, appendix E), with the table
of bitsandbytes and its blocks of 64 inputs of an output; scales are float32 and
not quantised once more. Embeddings, head, norms and biases are bfloat16.

Ours and not qwix's: its NF4 codes are uint4 arrays, which take a byte each on
CPUs, and its arrays are classes whose scan over layers and split over devices
would need rules of their own. Here a kernel becomes a dict of two arrays.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax.types import Tree

DTYPES = ("float32", "bfloat16", "int8", "nf4")
BLOCK = 64
CODE_BOOK = (
  -1.0,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0.0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1.0,
)


def freeze(name: str, x: jax.Array, dtype: str) -> Tree:
  """Returns an array of the base as it is kept.

  Args:
    name: its path, such as layers/q/kernel.
    x: [...], a kernel [..., in, out].
    dtype: how it is kept, one of DTYPES.

  Returns:
    An array, or of a layer's kernel in int8 {"int8": [..., in, out], "scales":
    [..., in / block, out] float32}, in nf4 {"nf4": [..., in / 2, out] uint8,
    "scales": ...}, of which a byte has the codes of two neighbours, the first
    in its upper half.
  """
  if dtype == "float32":
    return x
  if dtype == "bfloat16" or not name.endswith("/kernel") or "head" in name:
    return x.astype(jnp.bfloat16)
  blocks = _blocks(x.astype(jnp.float32))
  most = jnp.max(jnp.abs(blocks), axis=-2, keepdims=True)
  scales = most / 127 if dtype == "int8" else most
  found = blocks / jnp.where(most > 0, scales, 1)
  if dtype == "int8":
    values = jnp.round(found).astype(jnp.int8).reshape(x.shape)
  else:
    # The nearest entry, by the midpoints between neighbours.
    book = np.array(CODE_BOOK, np.float32)
    codes = jnp.searchsorted((book[1:] + book[:-1]) / 2, found)
    codes = codes.astype(jnp.uint8).reshape(*x.shape[:-2], -1, 2, x.shape[-1])
    values = (codes[..., 0, :] << 4) | codes[..., 1, :]
  return {dtype: values, "scales": scales[..., 0, :]}


def expand(kernel: Tree, dtype: Any = jnp.float32) -> jax.Array:
  """Returns a kernel [..., in, out] as floats; an array as it is.

  Args:
    kernel: an array, or what `freeze` made of one.
    dtype: of the result, where there was a dict.
  """
  if not isinstance(kernel, dict):
    return kernel
  if "int8" in kernel:
    found = kernel["int8"].astype(jnp.float32)
  else:
    codes = kernel["nf4"]
    codes = jnp.stack((codes >> 4, codes & 15), axis=-2)
    codes = codes.reshape(*codes.shape[:-3], -1, codes.shape[-1])
    found = jnp.asarray(CODE_BOOK, jnp.float32)[codes]
  count = kernel["scales"].shape[-2]
  blocks = found.reshape(*found.shape[:-2], count, -1, found.shape[-1])
  scaled = blocks * kernel["scales"][..., None, :]
  return scaled.reshape(found.shape).astype(dtype)


def is_quantised(layer: Tree) -> bool:
  """Returns whether a layer's kernels are what `freeze` makes of them."""
  return isinstance(layer["q"]["kernel"], dict)


def expand_layer(layer: Tree, dtype: Any = jnp.float32) -> Tree:
  """Returns a layer, or stacked layers, with every kernel as floats."""
  return {
    name: {**part, "kernel": expand(part["kernel"], dtype)}
    if "kernel" in part
    else part
    for name, part in layer.items()
  }


def _blocks(x: jax.Array) -> jax.Array:
  """[..., in / block, block, out]; a block is 64 inputs, or what divides."""
  size = math.gcd(BLOCK, x.shape[-2])
  return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])
