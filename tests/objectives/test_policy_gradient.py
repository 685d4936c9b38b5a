"""Policy-gradient losses against closed forms and slow loops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.objectives import policy_gradient
from bilevel_jax.objectives.policy_gradient import PolicyGradient


def _arrays(seed, shape=(4, 6)):
  keys = jax.random.split(jax.random.key(seed), 3)
  logprobs = -jnp.exp(jax.random.normal(keys[0], shape))
  old = logprobs + 0.5 * jax.random.normal(keys[1], shape)
  return logprobs, old, jax.random.normal(keys[2], shape)


def test_clipped_surrogate_is_ppos_formula_token_by_token():
  logprobs, old, advantages = _arrays(0)
  losses, clipped = policy_gradient.clipped_surrogate(
    logprobs, old, advantages, PolicyGradient(clip_low=0.2, clip_high=0.3)
  )
  for index in np.ndindex(losses.shape):
    ratio = np.exp(float(logprobs[index]) - float(old[index]))
    advantage = float(advantages[index])
    bounded = min(max(ratio, 0.8), 1.3)
    expected = -min(ratio * advantage, bounded * advantage)
    np.testing.assert_allclose(losses[index], expected, rtol=1e-5)
    outside = (advantage > 0 and ratio > 1.3) or (advantage < 0 and ratio < 0.8)
    assert bool(clipped[index]) == outside


def test_dual_clip_bounds_what_a_negative_advantage_counts():
  """Dual-clip PPO, token by token: max(min(r A, clip(r) A), c A) if A < 0."""
  logprobs, old, advantages = _arrays(0)
  old = old - 1.0  # most ratios above the bound
  numbers = PolicyGradient(clip_low=0.2, clip_high=0.3, dual_clip=2.0)

  def total(logprobs):
    losses, clipped = policy_gradient.clipped_surrogate(
      logprobs, old, advantages, numbers
    )
    return losses.sum(), (losses, clipped)

  gradient, (losses, clipped) = jax.grad(total, has_aux=True)(logprobs)
  reached = 0
  for index in np.ndindex(losses.shape):
    ratio = np.exp(float(logprobs[index]) - float(old[index]))
    advantage = float(advantages[index])
    value = min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage)
    if advantage < 0:
      value = max(value, 2.0 * advantage)
      reached += ratio > 2
    np.testing.assert_allclose(losses[index], -value, rtol=1e-5)
  assert 0 < reached < losses.size
  np.testing.assert_array_equal(gradient == 0, clipped)


def test_clipped_tokens_have_no_gradient_and_the_others_do():
  logprobs, old, advantages = _arrays(1)

  def total(logprobs):
    losses, clipped = policy_gradient.clipped_surrogate(
      logprobs, old, advantages, PolicyGradient(clip_low=0.2, clip_high=0.2)
    )
    return losses.sum(), clipped

  gradient, clipped = jax.grad(total, has_aux=True)(logprobs)
  assert clipped.any()
  assert not clipped.all()
  np.testing.assert_array_equal(gradient[clipped], 0.0)
  assert (gradient[~clipped] != 0).all()


def test_on_policy_gradient_is_reinforce():
  logprobs, _, advantages = _arrays(2)
  gradient = jax.grad(
    lambda x: policy_gradient.clipped_surrogate(
      x, logprobs, advantages, PolicyGradient()
    )[0].sum()
  )(logprobs)
  chex.assert_trees_all_equal(gradient, -advantages)


def test_no_gradient_flows_into_the_sampling_policy():
  logprobs, old, advantages = _arrays(3)
  gradient = jax.grad(
    lambda x: policy_gradient.clipped_surrogate(
      logprobs, x, advantages, PolicyGradient()
    )[0].sum()
  )(old)
  np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("dual_clip", [None, 2.0])
@pytest.mark.parametrize(
  "loss", [policy_gradient.clipped_surrogate, policy_gradient.clipped_weight]
)
def test_numbers_may_be_arguments_of_one_compiled_program(loss, dual_clip):
  arrays, traces = _arrays(4), []

  @jax.jit
  def compiled(numbers):
    traces.append(None)
    return loss(*arrays, numbers)

  for low, high in ((0.2, 0.3), (0.05, 0.0), (1.0, 4.0)):
    numbers = PolicyGradient(clip_low=low, clip_high=high, dual_clip=dual_clip)
    chex.assert_trees_all_close(
      compiled(numbers), loss(*arrays, numbers), rtol=1e-6
    )
  assert len(traces) == 1


def test_k3_is_the_kl_in_expectation_and_zero_at_the_reference():
  p = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (50,)))
  q = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (50,)))
  k3 = policy_gradient.kl_k3(p, q)
  assert (k3 >= 0).all()
  exact = jnp.sum(jnp.exp(p) * (p - q))
  np.testing.assert_allclose(jnp.sum(jnp.exp(p) * k3), exact, rtol=1e-5)
  np.testing.assert_array_equal(policy_gradient.kl_k3(p, p), 0.0)


@pytest.mark.parametrize("normalise", ["group_std", "group_mean"])
def test_group_advantages_are_z_scores_of_the_scored_samples(normalise):
  rng = np.random.default_rng(0)
  rewards, scored = rng.random((5, 6)), rng.random((5, 6)) < 0.7
  scored[:, :2] = True
  advantages, baselines = policy_gradient.group_advantages(
    rewards, scored, np.ones(scored.shape, int), normalise=normalise
  )
  for p in range(5):
    group = rewards[p, scored[p]]
    std = group.std(ddof=1) + 1e-6 if normalise == "group_std" else 1.0
    for g in range(6):
      if not scored[p, g]:
        assert advantages[p, g] == 0
        continue
      expected = (rewards[p, g] - group.mean()) / std
      np.testing.assert_allclose(advantages[p, g], expected, rtol=1e-5)
      others = [r for i, r in enumerate(rewards[p]) if scored[p, i] and i != g]
      np.testing.assert_allclose(baselines[p, g], np.mean(others), rtol=1e-5)


@pytest.mark.parametrize("normalise", ["group_std", "group_mean"])
def test_groups_without_a_difference_have_advantage_exactly_zero(normalise):
  rewards = np.array([[0.1] * 3, [0.0, 1.0, 1.0], [np.nan, np.nan, 0.3]])
  scored = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
  advantages, baselines = policy_gradient.group_advantages(
    rewards, scored, np.ones(scored.shape, int), normalise=normalise
  )
  np.testing.assert_array_equal(advantages, 0.0)
  assert np.isfinite(baselines).all()


def test_an_unscorable_sample_does_not_poison_its_group():
  rewards = np.array([[0.0, 1.0, np.nan]])
  scored = np.array([[True, True, False]])
  advantages, _ = policy_gradient.group_advantages(
    rewards, scored, np.ones(scored.shape, int), normalise="group_mean"
  )
  np.testing.assert_allclose(advantages, [[-0.5, 0.5, 0.0]])


def test_cooperative_gain_is_the_exact_difference_when_all_is_enumerated():
  """Every outcome once, weighted by the sampler: the estimator is J - J_hat."""
  rng = np.random.default_rng(1)
  old, new, hat = (
    np.asarray(jax.nn.log_softmax(jnp.asarray(rng.normal(size=20))))
    for _ in range(3)
  )
  rewards = rng.random(20)
  exact = np.sum((np.exp(new) - np.exp(hat)) * rewards)
  # Drawing outcomes in proportion to `old`, by repetition.
  counts = np.round(np.exp(old) * 2_000_000).astype(int)
  repeat = lambda x: jnp.asarray(np.repeat(x, counts))
  gain, error = policy_gradient.cooperative_gain(
    repeat(rewards),
    jnp.full(counts.sum(), 0.3),
    jnp.ones(counts.sum()),
    repeat(new - old),
    repeat(hat - old),
  )
  np.testing.assert_allclose(gain, exact, atol=1e-3)
  assert abs(float(gain) - exact) < 5 * float(error) + 1e-3


def test_cooperative_gain_of_equal_policies_is_exactly_zero():
  ratio = jax.random.normal(jax.random.key(0), (8,))
  gain, error = policy_gradient.cooperative_gain(
    jnp.arange(8.0), jnp.ones(8), jnp.ones(8), ratio, ratio
  )
  assert float(gain) == 0.0
  assert float(error) == 0.0
