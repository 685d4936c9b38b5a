"""GSPO, CISPO, RLOO and REINFORCE++ against their closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.objectives import policy_gradient, weighting

CLIP = policy_gradient.PolicyGradient(clip_low=0.1, clip_high=0.15)


@pytest.fixture
def rows():
  """Log-probs under two policies of 4 sequences of unequal lengths."""
  rng = np.random.default_rng(0)
  counted = np.arange(6) < np.array([6, 3, 1, 5])[:, None]
  logprobs = -rng.exponential(size=counted.shape)
  old = logprobs + 0.4 * rng.normal(size=counted.shape)
  advantages = np.broadcast_to(rng.normal(size=(4, 1)), counted.shape)
  return logprobs, old, advantages, counted


def test_gspo_has_the_gradient_of_its_sequence_form(rows):
  """(1/B) sum_i min(s_i A_i, clip(s_i) A_i), s_i a geometric mean."""
  logprobs, old, advantages, counted = rows

  def by_sequence(logprobs):
    mean = jnp.where(counted, logprobs - old, 0).sum(1) / counted.sum(1)
    s, a = jnp.exp(mean), advantages[:, 0]
    return -jnp.minimum(s * a, jnp.clip(s, 0.9, 1.15) * a).mean()

  def by_token(logprobs):
    losses, _ = policy_gradient.clipped_surrogate(
      logprobs, old, advantages, CLIP, sequences=counted
    )
    return jnp.sum(weighting.sequence_mean(counted) * losses)

  with jax.enable_x64(True):
    expected = jax.value_and_grad(by_sequence)(jnp.asarray(logprobs))
    actual = jax.value_and_grad(by_token)(jnp.asarray(logprobs))
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-15)
  assert 0 < np.count_nonzero(np.abs(expected[1]).sum(axis=1)) < 4


def test_gspo_of_a_single_token_is_the_token_ratio(rows):
  logprobs, old, _, counted = rows
  np.testing.assert_allclose(
    policy_gradient.ratio(logprobs, old, CLIP, counted)[2, 0],
    policy_gradient.ratio(logprobs, old, CLIP)[2, 0],
    rtol=1e-6,
  )


def test_cispo_bounds_the_weight_of_every_token_and_drops_none(rows):
  logprobs, old, advantages, _ = rows
  gradient = jax.grad(
    lambda x: policy_gradient.clipped_weight(x, old, advantages, CLIP)[0].sum()
  )(logprobs)
  weight = np.clip(np.exp(logprobs - old), 0.9, 1.15)
  np.testing.assert_allclose(gradient, -weight * advantages, rtol=1e-5)
  _, clipped = policy_gradient.clipped_weight(logprobs, old, advantages, CLIP)
  ratio = np.exp(logprobs - old)
  np.testing.assert_array_equal(clipped, (ratio < 0.9) | (ratio > 1.15))


@pytest.mark.parametrize("of_sequences", [False, True])
@pytest.mark.parametrize(
  "loss", [policy_gradient.clipped_surrogate, policy_gradient.clipped_weight]
)
def test_on_policy_every_form_is_reinforce(rows, loss, of_sequences):
  logprobs, _, advantages, counted = rows
  sequences = counted if of_sequences else None
  gradient = jax.grad(
    lambda x: loss(x, logprobs, advantages, CLIP, sequences=sequences)[0].sum()
  )(logprobs)
  np.testing.assert_allclose(
    gradient, np.broadcast_to(-advantages, gradient.shape), rtol=1e-6
  )


REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5], [1.0, 0, 1, 9]])
SCORED = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]], bool)


def test_rloo_is_the_reward_over_the_mean_of_the_others():
  found, _ = policy_gradient.group_advantages(
    REWARDS, SCORED, np.ones(SCORED.shape, int), normalise="leave_one_out"
  )
  for p, g in np.ndindex(*REWARDS.shape):
    others = [REWARDS[p, i] for i in range(4) if SCORED[p, i] and i != g]
    expected = REWARDS[p, g] - np.mean(others) if SCORED[p, g] else 0.0
    np.testing.assert_allclose(found[p, g], expected, atol=1e-6)


def test_reinforce_plus_plus_whitens_over_the_batch():
  found, _ = policy_gradient.group_advantages(
    REWARDS, SCORED, np.ones(SCORED.shape, int), normalise="batch_std"
  )
  rewards = REWARDS[SCORED]
  np.testing.assert_allclose(
    found[SCORED], (rewards - rewards.mean()) / rewards.std(ddof=1), rtol=1e-5
  )
  assert found[~SCORED] == 0


def test_by_token_a_sample_counts_as_often_as_it_has_tokens():
  """verl's REINFORCE++: (0.707, -0.707) by sample for these two."""
  rewards, lengths = np.array([[1.0, 0.0]]), np.array([[10, 90]])
  found, _ = policy_gradient.group_advantages(
    rewards, np.ones((1, 2), bool), lengths, normalise="batch_std_by_token"
  )
  np.testing.assert_allclose(found, [[2.985, -0.332]], atol=5e-4)
  lengths = np.array([[3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5, 8]])
  found, _ = policy_gradient.group_advantages(
    REWARDS, SCORED, lengths, normalise="batch_std_by_token"
  )
  tokens = np.repeat(REWARDS[SCORED], lengths[SCORED])
  np.testing.assert_allclose(
    found[SCORED],
    (REWARDS[SCORED] - tokens.mean()) / tokens.std(ddof=1),
    rtol=1e-5,
  )
  assert found[~SCORED] == 0
  equal, _ = policy_gradient.group_advantages(
    np.full((2, 4), 0.1),
    SCORED[:2],
    lengths[:2],
    normalise="batch_std_by_token",
  )
  np.testing.assert_array_equal(equal, 0.0)


def test_its_variant_takes_the_groups_mean_and_the_batchs_deviation():
  found, baselines = policy_gradient.group_advantages(
    REWARDS,
    SCORED,
    np.ones(SCORED.shape, int),
    normalise="group_mean_batch_std",
  )
  centred, of_grpo = policy_gradient.group_advantages(
    REWARDS, SCORED, np.ones(SCORED.shape, int), normalise="group_mean"
  )
  np.testing.assert_allclose(found[SCORED].std(ddof=1), 1.0, rtol=1e-5)
  np.testing.assert_allclose(found, centred * found[0, 0] / centred[0, 0], 1e-5)
  np.testing.assert_array_equal(baselines, of_grpo)


@pytest.mark.parametrize("of_sequences", [False, True])
def test_beyond_its_bound_the_log_ratio_counts_no_further(rows, of_sequences):
  logprobs, old, _, counted = rows
  sequences = counted if of_sequences else None
  free = policy_gradient.ratio(logprobs, old, CLIP, sequences)
  bound = float(np.median(np.abs(np.log(free))))
  numbers = dataclasses.replace(CLIP, log_ratio_bound=bound)
  bounded = policy_gradient.ratio(logprobs, old, numbers, sequences)
  np.testing.assert_allclose(
    bounded, np.exp(np.clip(np.log(free), -bound, bound)), rtol=1e-6
  )
  slopes = jax.grad(
    lambda x: policy_gradient.ratio(x, old, numbers, sequences).sum()
  )(logprobs)
  beyond = np.abs(np.log(free)) > bound * (1 + 1e-6)
  assert beyond.any()
  assert not beyond.all()
  np.testing.assert_array_equal(np.asarray(slopes)[beyond], 0.0)
