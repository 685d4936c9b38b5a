"""Log-probabilities and entropies of tokens, from hidden states, in chunks.

Logits for every position are never in memory together: at a vocabulary of
152k, 32k tokens of float32 logits are 18 GiB. The derivative is written out,
since what automatic differentiation would keep of a chunk is three times its
logits:

    d log p(t) / d logits = one_hot(t) - softmax(logits),

from logits made anew, times the states and the table in their own dtype, with
float32 sums. It can be differentiated again. Ours: the chunks and the order of
the sums.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bilevel_jax.types import Array

# Arrays of a chunk's logits that are in memory at once: logits and what is
# made of them (exponentials; for entropies, their products with the logits).
_COPIES, _COPIES_WITH_ENTROPY = 2, 3


class _Form(NamedTuple):
  """What is asked for; hashable."""

  chunk: int
  with_entropy: bool
  rows: NamedSharding | None
  without_token: frozenset[int]


def token_logprobs(
  hidden: Array,
  unembedding: Array,
  tokens: Array,
  *,
  temperature: float | Array = 1.0,
  chunk: int = 1024,
  with_entropy: bool = False,
  rows: NamedSharding | None = None,
  without_token: frozenset[int] = frozenset(),
) -> tuple[jax.Array, jax.Array | None]:
  """Returns log p(tokens[:, t] | tokens[:, :t]) and the entropy of that draw.

  As `target_logprobs`, of each row's next token. Column 0 is zero.

  Args:
    hidden: [B, T, D] after the final norm; column t predicts token t + 1.
    unembedding: [D, V].
    tokens: [B, T] int32.
    temperature: as for `target_logprobs`, like the others.
    rows: of [B, ...] over devices.

  Returns:
    logprobs [B, T], and entropies [B, T] or None.
  """
  found = target_logprobs(
    hidden,
    unembedding,
    jnp.pad(tokens[:, 1:], ((0, 0), (0, 1))),
    temperature=temperature,
    chunk=chunk,
    with_entropy=with_entropy,
    rows=rows,
    without_token=without_token,
  )
  return jax.tree.map(lambda x: jnp.pad(x[:, :-1], ((0, 0), (1, 0))), found)


def target_logprobs(
  states: Array,
  unembedding: Array,
  targets: Array,
  *,
  temperature: float | Array = 1.0,
  chunk: int = 1024,
  with_entropy: bool = False,
  rows: NamedSharding | None = None,
  without_token: frozenset[int] = frozenset(),
) -> tuple[jax.Array, jax.Array | None]:
  """Returns log p of targets under the softmax of states @ unembedding.

  log p = logit[target] / temperature - logsumexp(logits / temperature), over
  the whole vocabulary, in float32 or better.

  Args:
    states: [B, K, D] hidden states after the final norm.
    unembedding: [D, V].
    targets: [B, K] int32.
    temperature: scalar that the logits are divided by; it carries no gradient.
    chunk: positions whose float32 logits would fill the memory that a device
      spends on logits and all that is made of them.
    with_entropy: also return the entropies in nats; they carry no gradient.
    rows: of [B, ...] over devices, which divide B; None: on one device. Each
      device goes through its own rows, and what they give the unembedding's
      gradient is summed over devices once, not in every chunk, and left split
      over D by the last of the axes that rows are on.
    without_token: ids in 0..V-1 whose logits are -inf.

  Returns:
    logprobs [B, K], and entropies [B, K] or None.
  """
  chex.assert_rank([states, unembedding, targets], [3, 2, 2])
  chex.assert_equal_shape_prefix([states, targets], 2)
  if rows is not None and rows.num_devices == 1:
    rows = None
  form = _Form(chunk, with_entropy, rows, without_token)
  wide = jnp.promote_types(states.dtype, jnp.float32)
  return _scores(
    form, states, unembedding, targets, jnp.asarray(temperature, wide)
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(form, hidden, unembedding, targets, temperature):
  """(log-probs, entropies or None) [B, T] of the targets of each column."""
  return _forward(form, hidden, unembedding, targets, temperature)[0]


def _forward(form, hidden, unembedding, targets, temperature):
  hidden, unembedding = _in_turn(hidden, unembedding)
  absent = _absent(form.without_token, unembedding)

  def local(hidden, unembedding, targets, temperature):
    def one_chunk(_, inputs):
      states, targets = inputs
      logits = _logits(states, unembedding, temperature, absent)
      top = jnp.max(logits, axis=-1, keepdims=True)
      exponentials = jnp.exp(logits - top)
      total = jnp.sum(exponentials, axis=-1)
      normaliser = top[..., 0] + jnp.log(total)
      picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
      entropy = None
      if form.with_entropy:
        below = logits - top
        if absent is not None:  # 0 log 0 is 0
          below = jnp.where(absent, 0, below)
        mean = jnp.sum(exponentials * below, axis=-1) / total
        entropy = jnp.log(total) - mean
      return None, (picked - normaliser, entropy, normaliser)

    copies = _COPIES_WITH_ENTROPY if form.with_entropy else _COPIES
    split, join = chunks(targets.shape, form.chunk // copies)
    outputs = jax.lax.scan(one_chunk, None, (split(hidden), split(targets)))[1]
    return jax.tree.map(join, outputs)

  spread = _on_each_device(
    form.rows, local, ("rows", "whole", "rows", "whole"), ("rows",) * 3
  )
  inputs = hidden, unembedding, targets, temperature
  logprobs, entropies, normalisers = spread(*inputs)
  return (logprobs, entropies), (*inputs, normalisers)


def _backward(form, residuals, cotangents):
  hidden, unembedding, targets, temperature, normalisers = residuals
  # A zero of its own: a compiler may make one array of the empty sums of
  # several gradients, as large as the table and there until the last of them.
  zero = jnp.zeros((), normalisers.dtype)
  cotangents, (unembedding, zero) = _in_turn(cotangents[0], (unembedding, zero))
  absent = _absent(form.without_token, unembedding)

  def local(
    hidden, unembedding, targets, temperature, normalisers, cotangents, zero
  ):
    # Recomputed where the gradient itself is differentiated backwards.
    @jax.checkpoint
    def one_chunk(total, inputs):
      states, targets, normalisers, cotangents = inputs
      logits = _logits(states, unembedding, temperature, absent)
      token = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 2)
      hit = (token == targets[..., None]).astype(logits.dtype)
      by_logits = (hit - jnp.exp(logits - normalisers[..., None])) * (
        cotangents[..., None] / temperature
      )
      by_logits = by_logits.astype(states.dtype)
      by_states = jnp.einsum("btv,dv->btd", by_logits, unembedding)
      by_table = jnp.einsum(
        "btd,btv->dv", states, by_logits, preferred_element_type=total.dtype
      )
      return total + by_table, by_states

    split, join = chunks(targets.shape, form.chunk // _COPIES)
    by_table, by_hidden = jax.lax.scan(
      one_chunk,
      jnp.broadcast_to(zero, unembedding.shape),
      jax.tree.map(split, (hidden, targets, normalisers, cotangents)),
    )
    if form.rows is not None:
      *others, last = form.rows.spec[0]
      by_table = jax.lax.psum_scatter(by_table, last, tiled=True)
      if math.prod(form.rows.mesh.shape[axis] for axis in others) > 1:
        by_table = jax.lax.psum(by_table, tuple(others))
    return join(by_hidden), by_table.astype(unembedding.dtype)

  spread = _on_each_device(
    form.rows,
    local,
    ("rows", "whole", "rows", "whole", "rows", "rows", "whole"),
    ("rows", "width"),
  )
  by_hidden, by_table = spread(
    hidden, unembedding, targets, temperature, normalisers, cotangents, zero
  )
  return by_hidden, by_table, None, jnp.zeros_like(temperature)


_scores.defvjp(_forward, _backward)


def _in_turn(before, large):
  """Both; the second, which may be gathered from many devices, not before its
  turn has come: it would fill memory from the update's beginning."""
  return jax.lax.optimization_barrier((before, large))


def logits(
  states: Array,
  unembedding: Array,
  temperature: float | Array,
  without_token: frozenset[int],
) -> jax.Array:
  """Returns [B, K, V] in float32 or better, over the temperature.

  Args:
    states: [B, K, D] hidden states after the final norm.
    unembedding: [D, V].
    temperature: scalar.
    without_token: ids in 0..V-1 whose logits are -inf.
  """
  absent = _absent(without_token, unembedding)
  return _logits(states, unembedding, temperature, absent)


def _absent(without_token, unembedding):
  """[1, 1, V] bool, whether an id has no token; None: they all have one."""
  if not without_token:
    return None
  ids = np.arange(unembedding.shape[1])[None, None]
  return np.isin(ids, list(without_token))


def _logits(states, unembedding, temperature, absent):
  wide = jnp.promote_types(states.dtype, jnp.float32)
  logits = jnp.matmul(states, unembedding, preferred_element_type=wide)
  logits /= temperature
  return logits if absent is None else jnp.where(absent, -jnp.inf, logits)


def chunks(
  shape: tuple[int, int], positions: int
) -> tuple[Callable[[Array], jax.Array], Callable[[Array], jax.Array]]:
  """Functions that split [B, T, ...] into chunks of columns, and join them.

  Time is split and rows are whole, so that each chunk has work for all rows.

  Args:
    positions: of a chunk, over all rows, at most; a column at least.
  """
  rows, columns = shape
  width = max(1, min(columns, positions // rows))
  count = -(-columns // width)

  def split(x):
    padding = ((0, 0), (0, count * width - columns)) + ((0, 0),) * (x.ndim - 2)
    x = jnp.pad(x, padding).reshape(rows, count, width, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(rows, count * width, *x.shape[3:])[:, :columns]

  return split, join


def _on_each_device(rows, function, arguments, results):
  """The function of all devices' rows, made of one that sees a device's own.

  Args:
    rows: sharding of rows, or None.
    function: of arrays to a tuple of arrays.
    arguments: for each, what of it a device sees: its "rows", or the "whole".
    results: for each, what of it a device makes: its "rows", or its part of
      the "width".
  """
  if rows is None:
    return function
  axes = rows.spec[0]
  specs = {
    "rows": rows.spec,
    "whole": PartitionSpec(),
    "width": PartitionSpec(axes[-1]),
  }
  return jax.shard_map(
    function,
    mesh=rows.mesh,
    in_specs=tuple(specs[what] for what in arguments),
    out_specs=tuple(specs[what] for what in results),
    # The compiler splits the vocabulary over the axes that rows are not on.
    axis_names=set(axes),
    check_vma=False,
  )
