"""Losses of given tokens, against closed forms and a slow loop."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_jax import types
from bilevel_jax.objectives import prefix_losses, token_weights

RNG = np.random.default_rng(0)
SHAPE = (3, 24)
GIVEN = np.zeros(SHAPE, np.float32)
GIVEN[0, 3:13] = GIVEN[1, 5:12] = 1
ENTROPIES = RNG.random(SHAPE).astype(np.float32)
LOGPROBS = -2 * RNG.random(SHAPE).astype(np.float32)
SURROGATE = RNG.normal(size=SHAPE).astype(np.float32)
BATCH = types.RLBatch(
  tokens=np.zeros(SHAPE, np.int32),
  positions=np.zeros(SHAPE, np.int32),
  segment_ids=np.ones(SHAPE, np.int32),
  weights=GIVEN,
  advantages=RNG.normal(size=SHAPE).astype(np.float32),
  rewards=np.zeros(3, np.float32),
  baselines=np.zeros(3, np.float32),
  scored=np.ones(3, np.float32),
  questions=np.zeros(3, np.int32),
  correct=np.zeros(3, np.float32),
  accuracy=np.zeros(3, np.float32),
  sampler_logprobs=None,
  old_logprobs=None,
  ref_logprobs=None,
  prefixed=GIVEN,
)


def _slowly(share):
  kept = np.zeros(SHAPE, bool)
  for row in range(SHAPE[0]):
    own = np.flatnonzero(GIVEN[row])
    count = math.ceil(round(share * len(own), 6))
    kept[row, own[np.argsort(-ENTROPIES[row, own])[:count]]] = True
  return kept


def test_the_most_uncertain_tokens_of_each_prefix_are_kept():
  for share in (0.0, 0.2, 0.5, 1.0):
    kept = prefix_losses.most_uncertain(ENTROPIES, GIVEN, share=share)
    np.testing.assert_array_equal(kept, _slowly(share), err_msg=str(share))
  kept = prefix_losses.most_uncertain(ENTROPIES, GIVEN, share=0.2)
  assert np.sum(kept, axis=1).tolist() == [2, 2, 0]  # of 10, 7 and 0


def test_a_reinforced_prefix_has_the_rl_loss_where_it_is_uncertain():
  loss = prefix_losses.policy_gradient(0.2)
  np.testing.assert_array_equal(
    loss(LOGPROBS, SURROGATE, ENTROPIES, BATCH), _slowly(0.2) * SURROGATE
  )


def test_a_likely_prefix_has_the_gradient_of_its_token_weight():
  weight = token_weights.trust_region(0.3)
  loss = prefix_losses.likelihood(weight, 0.5)
  slope = jax.grad(lambda x: jnp.sum(loss(x, SURROGATE, ENTROPIES, BATCH)))(
    LOGPROBS
  )
  expected = -0.5 * np.minimum(1, np.exp(LOGPROBS) / 0.3)
  np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_nothing_is_nothing():
  batch = dataclasses.replace(BATCH, prefixed=np.zeros(SHAPE, np.float32))
  assert not prefix_losses.nothing(LOGPROBS, SURROGATE, ENTROPIES, batch).any()
