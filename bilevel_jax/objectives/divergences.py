"""Divergences between two distributions of the next token.

Logits of all positions are never in memory together: both models' are made
anew from hidden states, a chunk of positions at a time, forwards and backwards.
Source: distillation on the policy's own samples, arXiv 2306.13649; ours: the
chunks, and all tokens but the top ones as one.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from bilevel_jax.objectives import logprobs
from bilevel_jax.types import Array

Kind = Literal["forward", "reverse", "js"]


class Teacher(NamedTuple):
  """What a teacher thinks of each position; constants."""

  states: Array
  """[B, K, D] hidden states after its final norm."""
  unembedding: Array
  """[D, V]."""


def between(teacher: Array, student: Array, kind: Kind) -> jax.Array:
  """Returns a divergence of distributions over the last axis, in nats.

      forward   KL(teacher || student)
      reverse   KL(student || teacher)
      js        the mean of KL(each || their mean)

  Args:
    teacher: [..., V] log-probs, constants; -inf has no part.
    student: [..., V] log-probs.
  """
  teacher = jax.lax.stop_gradient(teacher)
  if kind == "forward":
    return _kl(teacher, student)
  if kind == "reverse":
    return _kl(student, teacher)
  neither = (teacher == -jnp.inf) & (student == -jnp.inf)
  finite = (jnp.where(neither, 0.0, x) for x in (teacher, student))
  mean = jnp.logaddexp(*finite) - jnp.log(2.0)
  return (_kl(teacher, mean) + _kl(student, mean)) / 2


def of_states(
  states: Array,
  unembedding: Array,
  teacher: Teacher,
  *,
  kind: Kind,
  top: int | None = None,
  temperature: float | Array = 1.0,
  chunk: int = 1024,
  without_token: frozenset[int] = frozenset(),
) -> jax.Array:
  """Returns [B, K] divergences of softmax(states @ unembedding) from a teacher.

  Args:
    states: [B, K, D] hidden states after the final norm.
    unembedding: [D, V].
    teacher: of the same positions and vocabulary.
    top: the teacher's likeliest tokens alone, and all others as one; None: the
      whole vocabulary.
    temperature: scalar that both models' logits are divided by.
    chunk: positions whose logits are in memory at once.
    without_token: ids in 0..V-1 whose logits are -inf.
  """
  chex.assert_rank([states, teacher.states], 3)
  chex.assert_equal_shape_prefix([states, teacher.states], 2)
  teacher = jax.lax.stop_gradient(teacher)

  @jax.checkpoint
  def one_chunk(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
    own, others = inputs
    log_p = lambda states, table: jax.nn.log_softmax(
      logprobs.logits(states, table, temperature, without_token)
    )
    student = log_p(own, unembedding)
    theirs = log_p(others, teacher.unembedding)
    if top is not None:
      theirs, ids = jax.lax.top_k(theirs, top)
      student = jnp.take_along_axis(student, ids, axis=-1)
      theirs, student = _with_rest(theirs), _with_rest(student)
    return between(theirs, student, kind)

  rows, columns, _ = states.shape
  split, join = logprobs.chunks((rows, columns), chunk // _COPIES)
  return join(jax.lax.map(one_chunk, (split(states), split(teacher.states))))


# Arrays of a chunk's logits in memory at once: both models', and what is made
# of them.
_COPIES = 4
_SMALLEST = 1e-9  # what is left to all other tokens, at least


def _kl(p: Array, q: Array) -> jax.Array:
  """KL(p || q) of log-probs; 0 log 0 is 0, also where it is differentiated."""
  there = p > -jnp.inf
  p, q = jnp.where(there, p, 0.0), jnp.where(there, q, 0.0)
  return jnp.sum(jnp.where(there, jnp.exp(p) * (p - q), 0.0), axis=-1)


def _with_rest(log_p: jax.Array) -> jax.Array:
  """[..., n + 1]: the last is the log of what the n leave."""
  rest = 1 - jnp.sum(jnp.exp(log_p), axis=-1, keepdims=True)
  return jnp.concatenate([log_p, jnp.log(rest.clip(min=_SMALLEST))], axis=-1)
