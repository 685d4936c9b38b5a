"""Surrogates against the expected return, summed over all sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax.objectives import policy_gradient, surrogates
from tests import tabular

pytestmark = pytest.mark.usefixtures("float64")

VOCAB, LENGTH = 3, 4
SEQUENCES = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)))
MASK = np.ones((len(SEQUENCES), LENGTH))


def _policy():
  policy = tabular.policy(VOCAB)
  rng = np.random.default_rng(0)
  base = {"table": jnp.asarray(rng.normal(size=(VOCAB, VOCAB)) / 2)}
  adapter = {
    "A": jnp.asarray(rng.normal(size=(VOCAB, 2))),
    "B": jnp.asarray(rng.normal(size=(2, VOCAB))),
  }
  rewards = jnp.asarray(rng.normal(size=len(SEQUENCES)))
  return policy, base, adapter, rewards


def _logprobs(policy, base, adapter):
  """[N, T] log-probs of every sequence, each after a prompt of token 0."""
  previous = np.pad(SEQUENCES[:, :-1], ((0, 0), (1, 0)))
  logits = policy.hidden(base, adapter, previous, None, None)
  table = jax.nn.log_softmax(logits)
  return jnp.take_along_axis(table, SEQUENCES[..., None], axis=-1)[..., 0]


def _derivatives(function, base, adapter):
  """(gradient by both, d2 / dadapter dbase, d2 / dbase dbase), as vectors."""
  flat = lambda tree: jnp.concatenate(
    [x.ravel() for x in jax.tree.leaves(tree)]
  )
  by_base = jax.grad(function)
  return (
    flat(jax.grad(function, argnums=(0, 1))(base, adapter)),
    flat(jax.jacfwd(by_base, argnums=1)(base, adapter)),
    flat(jax.jacfwd(by_base)(base, adapter)),
  )


def _errors(surrogate, exact, base, adapter):
  return [
    float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))
    for got, want in zip(
      jax.jit(lambda b, w: _derivatives(surrogate, b, w))(base, adapter),
      jax.jit(lambda b, w: _derivatives(exact, b, w))(base, adapter),
      strict=True,
    )
  ]


def _mean(values, logprobs):
  """The mean over samples, as if sampled: weights carry no derivative."""
  return jnp.sum(jax.lax.stop_gradient(jnp.exp(logprobs.sum(1))) * values)


def test_dice_has_every_derivative_of_the_expected_return():
  policy, base, adapter, rewards = _policy()
  exact = lambda b, w: jnp.sum(
    jnp.exp(_logprobs(policy, b, w).sum(1)) * rewards
  )

  def surrogate(b, w):
    logprobs = _logprobs(policy, b, w)
    advantages = jnp.broadcast_to((rewards - 0.3)[:, None], MASK.shape)
    values = surrogates.dice(logprobs, advantages, MASK).sum(1)
    return _mean(values, logprobs)

  assert max(_errors(surrogate, exact, base, adapter)) < 1e-12
  np.testing.assert_allclose(surrogate(base, adapter), 0, atol=1e-15)


def test_dice_takes_rewards_to_go_and_baselines_of_each_token():
  policy, base, adapter, _ = _policy()
  rng = np.random.default_rng(1)
  # A reward for each prefix, and a baseline for each prefix one shorter.
  prefix = lambda t: SEQUENCES[:, :t] @ (VOCAB ** np.arange(t))
  rewards = np.stack(
    [rng.normal(size=VOCAB**t)[prefix(t)] for t in range(1, LENGTH + 1)], 1
  )
  baselines = np.stack(
    [rng.normal(size=VOCAB**t)[prefix(t)] for t in range(LENGTH)], 1
  )
  to_go = rewards[:, ::-1].cumsum(1)[:, ::-1]
  exact = lambda b, w: jnp.sum(
    jnp.exp(_logprobs(policy, b, w).sum(1)) * rewards.sum(1)
  )

  def surrogate(b, w):
    logprobs = _logprobs(policy, b, w)
    values = surrogates.dice(logprobs, to_go - baselines, MASK).sum(1)
    return _mean(values, logprobs)

  assert max(_errors(surrogate, exact, base, adapter)) < 1e-12


def test_token_ratio_is_right_to_first_order_only():
  policy, base, adapter, rewards = _policy()
  exact = lambda b, w: jnp.sum(
    jnp.exp(_logprobs(policy, b, w).sum(1)) * rewards
  )

  def surrogate(b, w):
    logprobs = _logprobs(policy, b, w)
    losses, _ = policy_gradient.clipped_surrogate(
      logprobs,
      jax.lax.stop_gradient(logprobs),
      (rewards - 0.3)[:, None] * MASK,
      policy_gradient.PolicyGradient(clip_low=0.2, clip_high=0.2),
    )
    return _mean(-losses.sum(1), logprobs)

  first, mixed, second = _errors(surrogate, exact, base, adapter)
  assert first < 1e-12
  assert mixed > 0.1
  assert second > 0.1


def test_dice_of_another_policys_samples_is_the_return_of_this_one():
  policy, base, adapter, rewards = _policy()
  sampler = _logprobs(policy, jax.tree.map(lambda x: 0.5 * x, base), adapter)
  exact = lambda b, w: jnp.sum(
    jnp.exp(_logprobs(policy, b, w).sum(1)) * (rewards - 0.3)
  )

  def surrogate(b, w):
    advantages = jnp.broadcast_to((rewards - 0.3)[:, None], MASK.shape)
    values = surrogates.dice(
      _logprobs(policy, b, w), advantages, MASK, sampler
    ).sum(1)
    return _mean(values, sampler)

  assert max(_errors(surrogate, exact, base, adapter)) < 1e-12


def test_dice_cost_has_every_derivative_of_the_divergence():
  policy, base, adapter, _ = _policy()
  reference = _logprobs(policy, jax.tree.map(lambda x: 0.5 * x, base), adapter)

  def exact(b, w):
    logprobs = _logprobs(policy, b, w)
    return jnp.sum(jnp.exp(logprobs.sum(1)) * (logprobs - reference).sum(1))

  def term(with_dice):
    def surrogate(b, w):
      logprobs = _logprobs(policy, b, w)
      costs = policy_gradient.kl_k3(logprobs, reference)
      if with_dice:
        costs = surrogates.dice_cost(logprobs, costs, MASK)
      return _mean(costs.sum(1), logprobs)

    return surrogate

  assert max(_errors(term(True), exact, base, adapter)) < 1e-12
  first, mixed, _ = _errors(term(False), exact, base, adapter)
  assert first > 0.01
  assert mixed > 0.01


def test_what_is_masked_has_no_value_and_no_gradient():
  logprobs = jnp.log(jnp.array([[0.5, 0.2, 0.9], [0.3, 0.4, 0.1]]))
  mask = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
  advantages = jnp.array([[5.0, 2.0, 7.0], [1.0, 1.0, 1.0]])
  bad = logprobs.at[:, 2].set(-jnp.inf)
  total = lambda x: surrogates.dice(x, advantages, mask).sum()
  want = np.zeros((2, 3))
  want[0, 1] = 2.0
  np.testing.assert_allclose(jax.grad(total)(bad), want, rtol=1e-12)
  cost = lambda x: surrogates.dice_cost(x, advantages, mask).sum()
  np.testing.assert_allclose(jax.grad(cost)(bad), want, rtol=1e-12)
