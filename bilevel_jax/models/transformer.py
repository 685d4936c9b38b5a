"""A decoder as pure functions of its weights: train, sample, initialise.

Training scans one block over stacked layers, so that compile time does not
grow with depth. Decoding is unrolled with each layer's own K and V arrays: a
cache that passed through a scan would be copied at every token.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from bilevel_jax.models import attention, layers, lora, presets, quantised
from bilevel_jax.types import Array, Tree

_INIT_TABLE = nn.initializers.variance_scaling(
  1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0
)


def init(key: jax.Array, *, architecture: presets.Architecture) -> Tree:
  """Returns random float32 weights, laid out as `Architecture` says.

  Args:
    key: PRNG key.
  """
  a = architecture
  embedding_key, head_key, layers_key = jax.random.split(key, 3)

  def init_layer(key):
    x = jnp.zeros((1, 1, a.width))
    rotation = layers.rotation(jnp.zeros((1, 1), jnp.int32), a)
    block = layers.Block(a)
    return block.init(key, x, rotation, lambda q, k, v: (q, None))["params"]

  base = {
    "embedding": _INIT_TABLE(
      embedding_key, (a.vocab_size, a.width), jnp.float32
    ),
    "layers": jax.vmap(init_layer)(jax.random.split(layers_key, a.layers)),
    "final_norm": {"scale": jnp.ones((a.width,), jnp.float32)},
  }
  if not a.tied_embeddings:
    head = _INIT_TABLE(head_key, (a.vocab_size, a.width), jnp.float32).T
    base["head"] = {"kernel": head}
  return base


def hidden(
  base: Tree,
  adapter: Tree | None,
  tokens: Array,
  positions: Array,
  segment_ids: Array,
  continuations: Array | None = None,
  *,
  architecture: presets.Architecture,
  scale: float,
  dtype: Any,
  kernel: str,
  remat: str,
  rows: jax.sharding.NamedSharding | None = None,
  frozen: bool = False,
) -> jax.Array:
  """Returns hidden states [B, T, D] after the final norm.

  Args:
    adapter: LoRA factors, merged into each layer as it is reached, or None.
    tokens: [B, T] int32.
    positions: [B, T] int32, from 0 in each segment.
    segment_ids: [B, T] int32; a token sees earlier columns of its own id.
    continuations: [B, T] int32 or None; of those, continuation 0, a prefix that
      others share, and its own.
    rows: of [B, ...] over devices; the stream between layers is held to it, so
      that weights move to the rows and not rows to the weights. The last of
      its axes also splits the width of the embedding. None: one device.
    frozen: whether the base is a constant: the adapter's product is then added
      to each matrix's, and nothing of a matrix's size is differentiated.
  """
  rotation = layers.rotation(positions, architecture)
  block = layers.Block(architecture)

  place = lambda x: x
  if rows is not None:
    place = lambda x: jax.lax.with_sharding_constraint(x, rows)

  def attend(q, k, v):
    return attention.KERNELS[kernel](q, k, v, segment_ids, continuations), None

  def step(x, layer):
    if frozen:
      own, factors = layer
      weights = _cast(quantised.expand_layer(own), dtype)
      added = (lora.addend(_cast(factors, dtype), scale),)
    else:
      weights, added = _effective(*layer, scale=scale, dtype=dtype), ()
    x, kept = block.apply({"params": weights}, x, rotation, attend, *added)
    return place(x), kept

  # Gathering before the cast spares a table in the compute dtype.
  x = _cast(base["embedding"][tokens], dtype)
  if rows is not None:
    # From the table's parts of the width to rows, over one axis at a time.
    *others, last = rows.spec[0]
    by_width = PartitionSpec(tuple(others), None, last)
    by_width = NamedSharding(rows.mesh, by_width)
    x = place(jax.lax.with_sharding_constraint(x, by_width))
  x, _ = jax.lax.scan(
    layers.rematerialise(step, remat), x, (base["layers"], adapter)
  )
  return _final_norm(_cast(base["final_norm"], dtype), x, architecture)


def unembedding(
  base: Tree, *, architecture: presets.Architecture, dtype: Any
) -> jax.Array:
  """Returns [D, V] in the compute dtype; hidden @ that are the logits."""
  if architecture.tied_embeddings:
    return _cast(base["embedding"], dtype).T
  return _cast(base["head"]["kernel"], dtype)


def merge(
  base: Tree,
  adapter: Tree | None,
  *,
  architecture: presets.Architecture,
  scale: float,
  dtype: Any,
) -> Tree:
  """Returns the sampler's weights: to the bit those that `hidden` uses.

  Laid out as the base, in the compute dtype, with `layers` a tuple of one
  tree per layer, so that decoding slices no stacked array. A quantised base
  stays as it is, and each of its layers has the adapter's factors beside it.
  """
  rest = {name: base[name] for name in base if name != "layers"}
  stacked = (base["layers"], adapter)

  def one(layer, factors):
    if quantised.is_quantised(layer):
      return {"quantised": layer, "factors": _cast(factors or {}, dtype)}
    return _effective(layer, factors, scale=scale, dtype=dtype)

  return {
    **_cast(rest, dtype),
    "layers": tuple(
      one(*jax.tree.map(lambda x, i=i: x[i], stacked))
      for i in range(architecture.layers)
    ),
  }


def init_cache(
  rows: int,
  columns: int,
  *,
  architecture: presets.Architecture,
  dtype: Any,
) -> Tree:
  """Returns ((k [B, K, H, S], v [B, K, S, H]), ...), zeros, a pair per layer.

  Args:
    columns: S, the longest sequence that fits.
  """
  a = architecture
  keys = (rows, a.kv_heads, a.head_dim, columns)
  values = (rows, a.kv_heads, columns, a.head_dim)
  return tuple(
    (jnp.zeros(keys, dtype), jnp.zeros(values, dtype)) for _ in range(a.layers)
  )


def extend(
  weights: Tree,
  cache: Tree,
  tokens: Array,
  positions: Array,
  start: Array | int,
  first: Array,
  *,
  architecture: presets.Architecture,
  scale: float = math.nan,
) -> tuple[jax.Array, Tree]:
  """Returns hidden states [B, n, D] of n new tokens, and the longer cache.

  A query in column c sees columns first[b] <= j <= c. Prefill, chunked prefill
  and decoding are this one function. start + n must not exceed S.

  Args:
    cache: from `init_cache` or `extend`; columns from `start` on may hold
      anything finite.
    tokens: [B, n] int32.
    positions: [B, n] int32.
    start: scalar, the column of the first token.
    first: [B] int32, the column of each row's first token that is not padding.
    scale: of factors beside a quantised layer; without any it is not read.
  """
  rotation = layers.rotation(positions, architecture)
  block = layers.Block(architecture)
  columns = jnp.arange(cache[0][0].shape[-1])[None, None, :]
  queries = (start + jnp.arange(tokens.shape[1]))[None, :, None]
  visible = (columns >= first[:, None, None]) & (columns <= queries)

  def attend_to(keys, values):
    def attend(q, k, v):
      k = k.transpose(0, 2, 3, 1).astype(keys.dtype)
      v = v.transpose(0, 2, 1, 3).astype(values.dtype)
      put = jax.lax.dynamic_update_slice_in_dim
      k, v = put(keys, k, start, 3), put(values, v, start, 2)
      return attention.dense(q, k, v, visible), (k, v)

    return attend

  x = weights["embedding"][tokens]
  longer = []
  for layer, pair in zip(weights["layers"], cache, strict=True):
    added = ()
    if "quantised" in layer:
      # Tied to what is new in each step: else a compiler would expand every
      # layer once, before the loop over tokens.
      layer, x = jax.lax.optimization_barrier((layer, x))
      added = (lora.addend(layer["factors"], scale),)
      layer = _cast(quantised.expand_layer(layer["quantised"]), x.dtype)
    x, kept = block.apply(
      {"params": layer}, x, rotation, attend_to(*pair), *added
    )
    longer.append(kept)
  return _final_norm(weights["final_norm"], x, architecture), tuple(longer)


def logits(
  weights: Tree,
  hidden: jax.Array,
  *,
  architecture: presets.Architecture,
  without_token: frozenset[int] = frozenset(),
) -> jax.Array:
  """Returns hidden @ unembedding, accumulated in float32 or better, [..., V].

  Args:
    hidden: [..., D].
    without_token: ids whose logits are -inf.
  """
  table = (
    weights["embedding"].T
    if architecture.tied_embeddings
    else weights["head"]["kernel"]
  )
  wide = jnp.promote_types(hidden.dtype, jnp.float32)
  found = jnp.einsum(
    "...d,dv->...v", hidden, table, preferred_element_type=wide
  )
  if not without_token:
    return found
  absent = np.isin(np.arange(architecture.vocab_size), list(without_token))
  return jnp.where(jnp.broadcast_to(absent, found.shape), -jnp.inf, found)


def _effective(layer, adapter_layer, *, scale, dtype):
  return _cast(lora.merge_layer(layer, adapter_layer, scale), dtype)


def _cast(tree, dtype):
  """Rounds; a bare cast may be elided by XLA (f32 -> bf16 -> f32), and then
  the learner's weights would not be the sampler's."""

  def cast(x):
    to = jnp.finfo(dtype)
    if to.nmant < jnp.finfo(x.dtype).nmant:
      x = jax.lax.reduce_precision(x, to.nexp, to.nmant)
    return x.astype(dtype)

  return jax.tree.map(cast, tree)


def _final_norm(parameters, x, architecture) -> Any:
  norm = layers.RMSNorm(architecture.norm_eps)
  return norm.apply({"params": parameters}, x)
