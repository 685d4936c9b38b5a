"""What runs on the device: filling a cache with prompts, and decoding."""

import collections
import functools
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel_jax import types
from bilevel_jax.rollout import sampling
from bilevel_jax.rollout.row_sharding import RowSharding

STOP, LENGTH, ERROR = range(len(types.FINISH_REASONS))
RUNNING = -1
_traced: collections.Counter[str] = collections.Counter()

row_keys = jax.jit(sampling.row_keys)


@types.pytree
class Rows:
  """What the rows of a batch are about."""

  token: types.Array  # [B] int32, the next input
  first: types.Array  # [B] int32, column of the prompt's first token
  end: types.Array  # [B] int32, column where the row's budget ends
  key_data: types.Array  # [B, words] uint32, of `sampling.row_keys`
  rules: sampling.Rules


class Span(NamedTuple):
  """Columns of a wave, int32 scalars."""

  begin: Any  # of the prompts' last tokens
  start: Any  # of the next input
  stop: Any  # where the segment ends


class Outcome(NamedTuple):
  """What a segment came to."""

  steps: jax.Array  # [] int32, taken before no row ran, or all
  tokens: jax.Array  # [B, length] int32, 0 where a row does not run
  logprobs: jax.Array  # [B, length] float32, likewise
  kept: jax.Array  # [B] int32, tokens that a row got
  finish: jax.Array  # [B] int8, index into FINISH_REASONS or RUNNING


def programs() -> dict[str, int]:
  """Returns how many programs were compiled so far, by name.

  Bounded by the sizes that batches come in, two per octave of rows and at
  most four per octave of columns; values in requests never add to it.
  """
  return dict(_traced)


@functools.partial(
  jax.jit, static_argnames=("policy", "chunks", "row_sharding")
)
def prefill(
  policy: types.Policy,
  weights: types.Tree,
  tokens: jax.Array,
  first: jax.Array,
  *,
  chunks: int,
  row_sharding: RowSharding,
) -> types.Tree:
  """Returns the cache of prompts, made piece by piece and chunk by chunk.

  Args:
    tokens: [pieces, rows, columns] int32, left-padded.
    first: [pieces, rows] int32, column of the first token.
    chunks: parts that the columns are split into; divides them.
  """
  _traced["prefill"] += 1
  pieces, rows, columns = tokens.shape
  size = columns // chunks

  def piece(inputs):
    tokens, first = inputs
    positions = jnp.maximum(jnp.arange(columns)[None] - first[:, None], 0)

    def extend(i, cache):
      chunk = functools.partial(
        jax.lax.dynamic_slice_in_dim,
        start_index=i * size,
        slice_size=size,
        axis=1,
      )
      return policy.extend(
        weights, cache, chunk(tokens), chunk(positions), i * size, first
      )[1]

    cache = row_sharding.split_rows(policy.init_cache(rows, columns))
    return jax.lax.fori_loop(0, chunks, extend, cache)

  cache = jax.lax.map(piece, (tokens, first))
  return row_sharding.split_rows(
    jax.tree.map(lambda x: x.reshape(pieces * rows, *x.shape[2:]), cache)
  )


@functools.partial(
  jax.jit,
  static_argnames=("policy", "key_impl", "needs", "length", "row_sharding"),
  donate_argnames=("cache",),
)
def decode(
  policy: types.Policy,
  weights: types.Tree,
  cache: types.Tree,
  rows: Rows,
  running: jax.Array,
  span: Span,
  eos_ids: jax.Array,
  *,
  key_impl: Hashable,
  needs: sampling.Needs,
  length: int,
  row_sharding: RowSharding,
) -> tuple[types.Tree, Outcome]:
  """Returns the cache and the outcome of one segment of decoding.

  Args:
    cache: of B rows and at least `span.stop` columns; donated.
    running: [B] bool; the others are there to fill the batch.
    span: columns of this segment and of its wave.
    eos_ids: [E] int32.
    length: at least span.stop - span.start.
  """
  _traced["decode"] += 1
  keys = jax.random.wrap_key_data(jnp.asarray(rows.key_data), impl=key_impl)
  put = jax.lax.dynamic_update_slice_in_dim

  def step(loop):
    cache, token, outcome = loop
    column = span.start + outcome.steps
    hidden, cache = policy.extend(
      weights,
      cache,
      token[:, None],
      (column - rows.first)[:, None],
      column,
      rows.first,
    )
    token, logprob = sampling.draw(
      keys,
      column - span.begin,
      policy.logits(weights, hidden[:, 0]),
      rows.rules,
      needs=needs,
    )
    broken = ~jnp.isfinite(logprob)
    running = outcome.finish == RUNNING
    kept = running & ~broken
    token, logprob = jnp.where(kept, token, 0), jnp.where(kept, logprob, 0)
    finish = jnp.select(
      [
        ~running,
        broken,
        (token[:, None] == eos_ids[None]).any(-1),
        column + 1 >= rows.end,
      ],
      [outcome.finish, *(jnp.int8(x) for x in (ERROR, STOP, LENGTH))],
      jnp.int8(RUNNING),
    )
    return (
      row_sharding.split_rows(cache),
      token,
      Outcome(
        steps=outcome.steps + 1,
        tokens=put(outcome.tokens, token[:, None], outcome.steps, 1),
        logprobs=put(outcome.logprobs, logprob[:, None], outcome.steps, 1),
        kept=outcome.kept + kept,
        finish=finish,
      ),
    )

  size = len(rows.token)
  nothing = Outcome(
    steps=jnp.int32(0),
    tokens=jnp.zeros((size, length), jnp.int32),
    logprobs=jnp.zeros((size, length), jnp.float32),
    kept=jnp.zeros(size, jnp.int32),
    finish=jnp.where(running, jnp.int8(RUNNING), jnp.int8(LENGTH)),
  )
  cache, _, outcome = jax.lax.while_loop(
    lambda loop: (
      (span.start + loop[2].steps < span.stop)
      & (loop[2].finish == RUNNING).any()
    ),
    step,
    (cache, rows.token, nothing),
  )
  return cache, row_sharding.gather(outcome)
