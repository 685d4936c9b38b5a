"""Preferences between samples of one question: direct optimisation."""

import chex
import jax
import jax.numpy as jnp

from bilevel_jax.types import Array


def direct(
  log_ratios: Array,
  correct: Array,
  scored: Array,
  questions: Array,
  *,
  beta: float,
) -> jax.Array:
  """Returns DPO's loss over every (right, wrong) pair of each question.

  The mean over a question's pairs of -log sigmoid(beta (s_right - s_wrong)),
  s = log pi(y) - log pi_ref(y), then over questions that have a pair; 0 where
  none has. Source: arXiv 2305.18290, for one pair.

  Args:
    log_ratios: [B] s, of whole sequences.
    correct: [B] 1 where the answer is right.
    scored: [B] 1 where the row counts.
    questions: [B] int, rows of one number are of one question.
  """
  chex.assert_rank(log_ratios, 1)
  chex.assert_equal_shape([log_ratios, correct, scored, questions])
  right, wrong = scored * correct, scored * (1 - correct)
  same = questions[:, None] == questions[None, :]
  pairs = same * right[:, None] * wrong[None, :]
  margins = beta * (log_ratios[:, None] - log_ratios[None, :])
  # Pairs of each row's question.
  of_question = (same * pairs.sum(axis=1)[None, :]).sum(axis=1)
  share = pairs / of_question.clip(min=1)[:, None]
  return -jnp.sum(share * jax.nn.log_sigmoid(margins)) / share.sum().clip(1e-9)
