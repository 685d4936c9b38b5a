"""Losses of given tokens, against closed forms and a slow loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import types
from bilevel_jax.objectives import (
  policy_gradient,
  prefix_losses,
  token_weights,
)

RNG = np.random.default_rng(0)
SHAPE = (3, 24)
# A row of one sequence, one of three packed together, and an empty one.
SEGMENTS = np.zeros(SHAPE, np.int32)
SEGMENTS[0, :20] = 1
SEGMENTS[1] = np.repeat([1, 2, 3], 8)
GIVEN = np.zeros(SHAPE, np.float32)
GIVEN[0, 3:13] = 1
GIVEN[1, 1:6] = GIVEN[1, 10:11] = GIVEN[1, 17:24] = 1
ENTROPIES = RNG.random(SHAPE).astype(np.float32)
LOGPROBS = -2 * RNG.random(SHAPE).astype(np.float32)
OLD = LOGPROBS + 0.4 * RNG.normal(size=SHAPE).astype(np.float32)
BATCH = types.RLBatch(
  tokens=np.zeros(SHAPE, np.int32),
  positions=np.zeros(SHAPE, np.int32),
  segment_ids=SEGMENTS,
  weights=GIVEN,
  advantages=RNG.normal(size=SHAPE).astype(np.float32),
  rewards=np.zeros(3, np.float32),
  baselines=np.zeros(3, np.float32),
  scored=np.ones(3, np.float32),
  sampler_logprobs=None,
  old_logprobs=None,
  ref_logprobs=None,
  given=GIVEN,
)


def _slowly(share):
  kept = np.zeros(SHAPE, bool)
  for row in range(SHAPE[0]):
    for segment in (1, 2, 3):
      own = np.flatnonzero((SEGMENTS[row] == segment) & (GIVEN[row] > 0))
      count = -int(-round(share * len(own), 6) // 1)
      kept[row, own[np.argsort(-ENTROPIES[row, own])[:count]]] = True
  return kept


def test_the_most_uncertain_tokens_of_each_sequence_are_kept():
  for share in (0.0, 0.2, 0.5, 1.0):
    kept = prefix_losses.most_uncertain(ENTROPIES, GIVEN, SEGMENTS, share=share)
    np.testing.assert_array_equal(kept, _slowly(share), err_msg=str(share))
  twos = prefix_losses.most_uncertain(ENTROPIES, GIVEN, SEGMENTS, share=0.2)
  assert np.sum(twos, axis=1).tolist() == [2, 1 + 1 + 2, 0]


def test_a_reinforced_prefix_has_ppos_loss_where_it_is_uncertain():
  loss = prefix_losses.reinforced(top_share=0.2, clip_low=0.2, clip_high=0.3)
  expected, _ = policy_gradient.clipped_surrogate(
    LOGPROBS, OLD, BATCH.advantages, clip_low=0.2, clip_high=0.3
  )
  np.testing.assert_allclose(
    loss(LOGPROBS, OLD, ENTROPIES, BATCH),
    np.where(_slowly(0.2), expected, 0),
    atol=1e-6,
  )


def test_a_likely_prefix_has_the_gradient_of_its_token_weight():
  weight = token_weights.trust_region(0.3)
  loss = prefix_losses.likelihood(weight, 0.5)
  slope = jax.grad(lambda x: jnp.sum(loss(x, OLD, ENTROPIES, BATCH)))(LOGPROBS)
  expected = -0.5 * np.minimum(1, np.exp(LOGPROBS) / 0.3)
  np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_nothing_is_nothing():
  batch = dataclasses.replace(BATCH, given=np.zeros(SHAPE, np.float32))
  assert not prefix_losses.nothing(LOGPROBS, OLD, ENTROPIES, batch).any()
