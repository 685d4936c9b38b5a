"""Causal grouped-query attention, in three kernels and one switch.

  xla      scores in memory, any dtype, any order of differentiation
  chunked  memory linear in T, any dtype, any order of differentiation
  cudnn    NVIDIA's flash attention: bfloat16, first order, right-padded rows

In shapes: N query heads, K key and value heads, N = K * G, H head size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import errors
from bilevel_jax.types import Array

# Finite, so that a row without visible columns stays finite.
_MASKED = -1e30
_CHUNK = 128


def dense(q: Array, k: Array, v: Array, visible: Array) -> jax.Array:
  """Returns softmax(q k^T / sqrt(H)) v over the visible columns, [B, T, N, H].

  Keys and values come with their axes in the order of the two products, which
  are plain products of matrices: a CPU would transpose any other at each call.
  jax.nn.dot_product_attention is not used: its softmax is in float32 even
  where q is float64.

  Args:
    q: queries [B, T, N, H].
    k: keys [B, K, H, S].
    v: values [B, K, S, H].
    visible: which columns a query sees, bool [B, T, S].
  """
  rows, queries, heads, size = q.shape
  groups, columns = k.shape[1], k.shape[3]
  wide = jnp.promote_types(q.dtype, jnp.float32)
  q = q.reshape(rows, queries, groups, -1, size).transpose(0, 2, 3, 1, 4)
  scores = jnp.matmul(
    q.reshape(rows, groups, -1, size), k, preferred_element_type=wide
  )
  scores = scores.reshape(rows, groups, -1, queries, columns)
  scores = scores * wide.type(size**-0.5)
  scores = jnp.where(visible[:, None, None], scores, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  mixed = jnp.matmul(weights.reshape(rows, groups, -1, columns), v)
  mixed = mixed.reshape(rows, groups, -1, queries, size)
  return mixed.transpose(0, 3, 1, 2, 4).reshape(rows, queries, heads, size)


def xla(
  q: Array,
  k: Array,
  v: Array,
  segment_ids: Array,
  continuations: Array | None = None,
) -> jax.Array:
  """Returns attention within segments, scores in memory, [B, T, N, H].

  Args:
    q: queries [B, T, N, H].
    k: keys [B, T, K, H].
    v: values [B, T, K, H].
    segment_ids: [B, T]; a query sees earlier columns of its own id. Padding,
      id 0, sees padding: nobody reads it, and it stays finite.
    continuations: [B, T]; within its segment, a query sees continuation 0, the
      shared prefix, and its own.
  """
  same = _related(segment_ids, segment_ids, continuations, continuations)
  causal = np.tril(np.ones((q.shape[1], q.shape[1]), bool))
  k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
  return dense(q, k, v, same & causal[None])


def _related(
  queries: Array,
  keys: Array,
  own: Array | None,
  theirs: Array | None,
) -> Array:
  """Which keys [B, S] have a query's [B, T] segment, and its continuation."""
  same = queries[:, :, None] == keys[:, None, :]
  if own is None or theirs is None:
    return same
  theirs = theirs[:, None, :]
  return same & ((own[:, :, None] == theirs) | (theirs == 0))


def chunked(
  q: Array,
  k: Array,
  v: Array,
  segment_ids: Array,
  continuations: Array | None = None,
  *,
  chunk: int = _CHUNK,
) -> jax.Array:
  """Returns what `xla` does, with [B, N, chunk, chunk] scores in memory.

  Online softmax (Milakov and Gimelshein, arXiv:1805.02867) in two nested
  scans, recomputed in the backward pass (Rabe and Staats, arXiv:2112.05682),
  of plain operations, so that JAX differentiates it any number of times.

  Args:
    q: queries [B, T, N, H].
    k: keys [B, T, K, H].
    v: values [B, T, K, H].
    segment_ids: [B, T], as for `xla`.
    continuations: [B, T], as for `xla`.
    chunk: queries, and keys, that are scored at once.
  """
  rows, columns, heads, size = q.shape
  groups = k.shape[2]
  wide = jnp.promote_types(q.dtype, jnp.float32)
  chunks = -(-columns // chunk)

  def split(x):  # [B, T, ...] -> [chunks, B, chunk, ...]
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, chunks * chunk - columns)
    x = jnp.pad(x, padding)
    return jnp.moveaxis(x.reshape(rows, chunks, chunk, *x.shape[2:]), 1, 0)

  q = q.reshape(rows, columns, groups, heads // groups, size)
  within = jnp.arange(chunk)
  segments = jax.tree.map(split, (segment_ids, continuations))
  keys = (split(k), split(v), segments, jnp.arange(chunks))

  @jax.checkpoint
  def attend(queries):
    q, (q_segments, q_continuations), i = queries

    @jax.checkpoint
    def accumulate(carry, keys):
      top, total, mixed = carry
      k, v, (k_segments, k_continuations), j = keys
      scores = jnp.einsum(
        "bqkgh,bskh->bkgqs", q, k, preferred_element_type=wide
      ) * wide.type(size**-0.5)
      causal = (i * chunk + within)[:, None] >= (j * chunk + within)[None]
      same = _related(q_segments, k_segments, q_continuations, k_continuations)
      scores = jnp.where((same & causal[None])[:, None, None], scores, _MASKED)
      # The result does not depend on `top`: its derivative is zero.
      new_top = jnp.maximum(top, jax.lax.stop_gradient(scores.max(-1)))
      decay = jnp.exp(top - new_top)
      weights = jnp.exp(scores - new_top[..., None])
      mixed = mixed * decay[..., None] + jnp.einsum(
        "bkgqs,bskh->bkgqh",
        weights.astype(v.dtype),
        v,
        preferred_element_type=wide,
      )
      return (new_top, total * decay + weights.sum(-1), mixed), None

    shape = (rows, groups, heads // groups, chunk)
    empty = (
      jnp.full(shape, _MASKED, wide),
      jnp.zeros(shape, wide),
      jnp.zeros((*shape, size), wide),
    )
    (_, total, mixed), _ = jax.lax.scan(accumulate, empty, keys)
    return jnp.moveaxis(mixed / total[..., None], 3, 1).astype(v.dtype)

  mixed = jax.lax.map(attend, (split(q), segments, keys[-1]))
  mixed = jnp.moveaxis(mixed, 0, 1).reshape(rows, -1, heads, size)
  return mixed[:, :columns]


def cudnn(
  q: Array,
  k: Array,
  v: Array,
  segment_ids: Array,
  continuations: Array | None = None,
) -> jax.Array:
  """Returns attention of rows with one right-padded segment, [B, T, N, H].

  The kernel takes lengths, not segments. Rows that are packed or left-padded
  become NaN: silence would be a wrong answer.

  Args:
    q: queries [B, T, N, H], bfloat16.
    k: keys [B, T, K, H].
    v: values [B, T, K, H].
    segment_ids: [B, T], a constant followed by zeros.
    continuations: None; the kernel cannot have [B, T] of them.

  Raises:
    ValueError: continuations.
  """
  if continuations is not None:
    raise ValueError("cudnn attention takes no continuations")
  lengths = jnp.sum(segment_ids != 0, axis=1, dtype=jnp.int32)
  real = jnp.arange(q.shape[1])[None] < lengths[:, None]
  expected = jnp.where(real, segment_ids[:, :1], 0)
  served = jnp.all(segment_ids == expected, axis=1)
  # Its backward pass takes even lengths only.
  even = [(0, 0), (0, q.shape[1] % 2), (0, 0), (0, 0)]
  mixed = jax.nn.dot_product_attention(
    *(jnp.pad(x, even) for x in (q, k, v)),
    is_causal=True,
    query_seq_lengths=lengths,
    key_value_seq_lengths=lengths,
    implementation="cudnn",
  )[:, : q.shape[1]]
  return jnp.where(served[:, None, None, None], mixed, jnp.nan)


KERNELS: dict[str, Callable[..., jax.Array]] = {
  "xla": xla,
  "chunked": chunked,
  "cudnn": cudnn,
}
SECOND_ORDER = frozenset({"xla", "chunked"})
TAKES_SEGMENTS = frozenset({"xla", "chunked"})
"""Kernels that serve rows with several sequences."""


def choose(name: str, backend: str, dtype: jax.typing.DTypeLike) -> str:
  """Returns the kernel that a setting stands for, a key of KERNELS.

  "auto" is `xla` on a CPU, where rows are short and one large product is
  fastest, and `chunked` on accelerators. It is never `cudnn`, which has no
  second derivative and serves neither packed nor left-padded rows: that
  choice is the user's.

  Args:
    name: "auto" or a key of KERNELS.
    backend: cpu, gpu or tpu, as from jax.default_backend().

  Raises:
    ConfigError: unknown name, or a kernel that cannot run here.
  """
  if name == "auto":
    return "xla" if backend == "cpu" else "chunked"
  if name not in KERNELS:
    raise errors.ConfigError(
      f"model.attention must be one of auto, {', '.join(KERNELS)}, got {name!r}"
    )
  if name == "cudnn" and (backend != "gpu" or jnp.dtype(dtype) != jnp.bfloat16):
    raise errors.ConfigError(
      "model.attention=cudnn needs a GPU and model.compute_dtype=bfloat16, got "
      f"{backend} and {jnp.dtype(dtype).name}; use chunked or xla"
    )
  return name
