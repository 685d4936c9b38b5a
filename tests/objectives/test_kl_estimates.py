"""The KL term's expected gradient, summed over every sequence there is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import types
from bilevel_jax.methods import terms
from bilevel_jax.objectives import policy_gradient
from tests import tabular

pytestmark = pytest.mark.usefixtures("float64")

VOCABULARY = 3
# No clip: what is checked is an expectation.
NUMBERS = {"clip_low": 1.0, "clip_high": 1e9, "kl_coef": 0.7}
ESTIMATES = ("k3", "k2", "reward")


def _tables(seed=0):
  """Logits of a policy, its reference and another policy, [V, V] each."""
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=(VOCABULARY,) * 2)) for _ in range(3)]


def _sequences(length):
  """[N, 1 + T] tokens, each after a prompt of token 0."""
  every = itertools.product(range(VOCABULARY), repeat=length)
  return np.array([(0, *sequence) for sequence in every], np.int32)


def _logprobs(table, tokens):
  """[N, 1 + T], 0 in the first column."""
  found = jax.nn.log_softmax(table)[tokens[:, :-1], tokens[:, 1:]]
  return jnp.pad(found, ((0, 0), (1, 0)))


def _loss(table, ref, length, estimate, *, sampler=None, **how):
  """The RL loss without a reward, over all sequences by their probability."""
  tokens = _sequences(length)
  another = sampler is not None
  of = _logprobs(sampler if another else table, tokens)
  chance = jnp.tile(jnp.exp(of.sum(axis=1, keepdims=True)), length)
  rows = len(tokens)
  zero = np.zeros(rows)
  batch = types.RLBatch(
    tokens=tokens,
    positions=np.broadcast_to(np.arange(length + 1), tokens.shape),
    segment_ids=np.ones(tokens.shape, np.int32),
    weights=jax.lax.stop_gradient(jnp.pad(chance, ((0, 0), (1, 0)))),
    advantages=np.zeros(tokens.shape),
    rewards=zero,
    baselines=zero,
    scored=np.ones(rows),
    questions=np.zeros(rows, np.int32),
    correct=zero,
    accuracy=zero,
    sampler_logprobs=None,
    old_logprobs=of if another else None,
    ref_logprobs=_logprobs(ref, tokens),
    sampled_by_another=how.pop("told", another),
  )
  objective = terms.rl_objective(
    tabular.policy(VOCABULARY),
    numbers=policy_gradient.PolicyGradient(
      importance_cap=None, **(NUMBERS | how.pop("numbers", {}))
    ),
    temperature=1.0,
    chunk=64,
    kl_estimate=estimate,
    **how,
  )
  return objective({"table": table}, None, batch)[0]


def _of_sequences(table, ref, length):
  """KL(policy || ref) of whole sequences."""
  tokens = _sequences(length)
  now, then = (_logprobs(x, tokens).sum(axis=1) for x in (table, ref))
  return jnp.sum(jnp.exp(now) * (now - then))


def _of_tokens(table, ref, length, *, reverse):
  """The sum over tokens of either KL, where the policy leads held still."""
  now, then = jax.nn.log_softmax(table), jax.nn.log_softmax(ref)
  if reverse:
    now, then = then, now
  kl = jnp.sum(jnp.exp(now) * (now - then), axis=1)
  step = jax.lax.stop_gradient(jax.nn.softmax(table))
  at, total = jnp.eye(VOCABULARY)[0], 0.0
  for _ in range(length):
    total += at @ kl
    at = at @ step
  return total


EXACT = {
  "k3": lambda *of: _of_tokens(*of, reverse=True),
  "k2": lambda *of: _of_tokens(*of, reverse=False),
  "reward": _of_sequences,
}


def _close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_an_estimate_has_the_gradient_of_its_divergence(estimate, length):
  table, ref, _ = _tables()
  found = jax.grad(_loss)(table, ref, length, estimate)
  exact = jax.grad(EXACT[estimate])(table, ref, length)
  _close(found, NUMBERS["kl_coef"] * exact)
  assert jnp.abs(exact).max() > 0.1


def test_on_three_actions_k3_points_elsewhere():
  """By hand: along (1, 0, -1), where the KL's gradient is along (2, -1, -1)."""
  table, ref = (
    jnp.log(jnp.array([p] * 3)) for p in ((0.6, 0.3, 0.1), (0.1, 0.3, 0.6))
  )
  exact = jax.grad(_of_sequences)(table, ref, 1).ravel()

  def cosine(estimate):
    found = jax.grad(_loss)(table, ref, 1, estimate).ravel()
    return found @ exact / jnp.linalg.norm(found) / jnp.linalg.norm(exact)

  np.testing.assert_allclose(cosine("k3"), np.sqrt(3) / 2, rtol=1e-12)
  for estimate in ("k2", "reward"):
    np.testing.assert_allclose(cosine(estimate), 1.0, rtol=1e-12)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_another_policys_samples_teach_what_ones_own_do(estimate):
  """Its ratio is in the KL term, and without it the gradient is another."""
  table, ref, sampler = _tables()
  own = jax.grad(_loss)(table, ref, 1, estimate)
  _close(jax.grad(_loss)(table, ref, 1, estimate, sampler=sampler), own)
  untold = jax.grad(_loss)(table, ref, 1, estimate, sampler=sampler, told=False)
  in_advantage = estimate == "reward"  # the ratio of which is always there
  assert (jnp.abs(untold - own).max() > 0.01) != in_advantage


@pytest.mark.parametrize("estimate", ["k3", "k2"])
def test_the_dual_clip_bounds_that_ratio(estimate):
  table, ref, sampler = _tables()
  tokens = _sequences(1)
  now, of, ref_logprobs = (_logprobs(x, tokens) for x in (table, sampler, ref))
  found = jax.grad(_loss)(
    table, ref, 1, estimate, sampler=sampler, numbers={"dual_clip": 1.1}
  )
  ratio = jnp.minimum(jnp.exp(now - of), 1.1)
  assert (ratio == 1.1).any()

  def expected(table):
    d = _logprobs(table, tokens) - ref_logprobs
    loss = {"k3": jnp.expm1(-d) + d, "k2": d**2 / 2}[estimate]
    return NUMBERS["kl_coef"] * jnp.sum((jnp.exp(of) * ratio * loss)[:, 1])

  _close(found, jax.grad(expected)(table))


@pytest.mark.parametrize("estimate", ["k3", "reward"])
def test_with_dice_every_derivative_is_that_of_the_divergence(estimate):
  table, ref, sampler = _tables()
  for another in (None, sampler):
    loss = lambda x, at=another: _loss(
      x, ref, 2, estimate, sampler=at, surrogate="dice"
    )
    exact = lambda x: NUMBERS["kl_coef"] * _of_sequences(x, ref, 2)
    _close(jax.grad(loss)(table), jax.grad(exact)(table))
    _close(jax.hessian(loss)(table), jax.hessian(exact)(table))


def test_a_token_that_was_given_has_no_part_in_the_sum():
  d = np.array([[0.0, 1.0, 2.0, 4.0, 8.0]])
  sampled = np.array([[0, 0, 1, 0, 1]], bool)
  found = policy_gradient.kl_to_go(d, np.zeros_like(d), sampled)
  np.testing.assert_array_equal(found, [[0, 0, 10, 0, 8]])
