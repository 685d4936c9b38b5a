"""What evidence makes of derivatives whose truth is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bilevel_jax.bilevel import evidence

FORM = evidence.Form(pooled_rate=20.0, own_rate=8.0)
TERMS, ROWS = 40, 10


def _learned(truth, features, *, steps=60, noise=1.0, form=FORM, says=None):
  """Returns the evidence after `steps` steps of noisy derivatives.

  Args:
    truth: [N], how much each term helps.
    features: [N, P].
  """
  rng = np.random.default_rng(0)
  found = evidence.empty(len(truth), features.shape[1])
  observe = jax.jit(evidence.observe, static_argnames="form")
  for step in range(steps):
    rows = rng.permutation(len(truth))[:ROWS].astype(np.int32)
    derivatives = -truth[rows] + noise * rng.normal(size=ROWS)
    found = observe(
      found,
      form,
      rows,
      derivatives.astype(np.float32),
      features[rows].astype(np.float32),
      real=np.ones(ROWS, bool),
      says=np.bool_(True if says is None else says(step)),
    )
  return found


@pytest.fixture(name="kinds")
def _kinds():
  """Half of the terms harm, and a feature shows which."""
  bad = np.arange(TERMS) % 2 == 0
  rng = np.random.default_rng(1)
  features = np.stack([bad + 0.01 * rng.normal(size=TERMS)], 1)
  return bad, np.where(bad, -1.0, 1.0), features


def test_pooled_effects_tell_kinds_apart(kinds):
  bad, truth, features = kinds
  found = _learned(truth, features, noise=3.0)
  assert found.weights[bad].max() < 0.2
  assert found.weights[~bad].min() > 0.8


def test_own_effects_tell_terms_apart_where_features_say_nothing(kinds):
  bad, truth, _ = kinds
  nothing = np.zeros((TERMS, 0))
  found = _learned(truth, nothing, steps=100)
  assert found.weights[bad].mean() < 0.2
  assert found.weights[~bad].mean() > 1.1
  first = evidence.weights(
    found, FORM, np.arange(3, dtype=np.int32), np.zeros((3, 0), np.float32)
  )
  np.testing.assert_array_equal(first, found.weights[:3])


def test_noise_alone_leaves_weights_near_one(kinds):
  _, truth, features = kinds
  found = _learned(0 * truth, features)
  assert np.abs(found.weights - 1).mean() < 0.1


@pytest.mark.parametrize("z", [1.0, 2.0, 3.0])
def test_few_steps_are_doubted_as_students_t(z):
  free = np.array([3, 5, 10, 40, 1000])  # fewer are not listened to
  want = stats.t.isf(stats.norm.sf(z), free) ** 2
  found = evidence._t_squared(z**2, jnp.asarray(free))
  np.testing.assert_allclose(found, want, rtol=0.15)


def test_a_mean_of_steps_is_doubted_as_one():
  """Chance alone moves weights as rarely as two standard errors say: 4.6%.

  What demonstrations are measured against is a mean over steps: its errors
  last, and would be taken for an effect of the features.
  """
  decay, steps = 0.5, 30

  def moved(key, dependence):
    form = FORM._replace(own_rate=0.0, dependence=dependence)
    a, b, c, own = jax.random.split(key, 4)
    features = jax.random.normal(a, (TERMS, 1))
    upper = jax.random.normal(b, (steps, 1))
    noise = 0.1 * jax.random.normal(c, (steps, ROWS))

    def step(carry, given):
      found, mean = carry
      number, upper, noise = given
      mean = decay * mean + (1 - decay) * upper
      order = jax.random.permutation(jax.random.fold_in(own, number), TERMS)
      rows = order[:ROWS]
      found = evidence.observe(
        found,
        form,
        rows,
        features[rows] @ mean + noise,
        features[rows],
        real=jnp.ones(ROWS, bool),
        says=jnp.bool_(True),
      )
      return (found, mean), None

    start = evidence.empty(TERMS, 1), jnp.zeros(1)
    (found, _), _ = jax.lax.scan(step, start, (jnp.arange(steps), upper, noise))
    return jnp.any(found.weights != 1)

  def share(dependence):
    keys = jax.random.split(jax.random.key(0), 400)
    return jax.jit(jax.vmap(lambda key: moved(key, dependence)))(keys).mean()

  assert 0.02 < share((1 + decay) / (1 - decay)) < 0.1
  assert share(1.0) > 0.2


def test_the_mean_weight_is_over_all_steps_and_silent_ones(kinds):
  _, truth, features = kinds
  says = lambda step: step % 3 > 0
  each = [
    _learned(truth, features, steps=steps, says=says).weights
    for steps in range(1, 13)
  ]
  assert np.ptp(each, axis=0).max() > 0.1
  found = _learned(truth, features, steps=12, says=says)
  np.testing.assert_allclose(
    evidence.ranking(found).mean_weight, np.mean(each, axis=0), rtol=1e-5
  )


def test_equal_rewards_move_nothing(kinds):
  _, truth, features = kinds
  found = _learned(truth, features, says=lambda step: False)
  np.testing.assert_array_equal(found.weights, np.ones(TERMS))
  assert found.steps == 0
  assert not found.times.any()
  assert found.known.any()


def test_a_term_never_seen_keeps_one_and_gets_its_weight_from_its_features(
  kinds,
):
  bad, truth, features = kinds
  unseen = np.arange(TERMS) >= 30
  rng = np.random.default_rng(0)
  found = evidence.empty(TERMS, 1)
  for _ in range(60):
    rows = rng.permutation(30)[:ROWS].astype(np.int32)
    derivatives = -truth[rows] + rng.normal(size=ROWS)
    found = evidence.observe(
      found,
      FORM,
      rows,
      jnp.float32(derivatives),
      jnp.float32(features[rows]),
      real=jnp.ones(ROWS, bool),
      says=jnp.bool_(True),
    )
  np.testing.assert_array_equal(found.weights[unseen], 1.0)
  rows = np.flatnonzero(unseen).astype(np.int32)
  given = evidence.weights(found, FORM, rows, jnp.float32(features[rows]))
  assert given[bad[rows]].max() < 0.3 < 0.7 < given[~bad[rows]].min()
  ranked = evidence.ranking(found)
  assert np.isnan(ranked.effect[unseen]).all()
  assert (ranked.times[~unseen] > 0).all()


def test_padding_is_no_term():
  features = np.zeros((TERMS, 1), np.float32)
  observe = lambda rows, derivatives, real: evidence.observe(
    evidence.empty(TERMS, 1),
    FORM,
    jnp.array(rows, jnp.int32),
    jnp.array(derivatives, jnp.float32),
    jnp.float32(features[np.array(rows)]),
    real=jnp.array(real),
    says=jnp.bool_(True),
  )
  padded = observe(
    [3, 5, 0, 0], [1.0, 2.0, 9.0, 9.0], [True, True, False, False]
  )
  plain = observe([3, 5], [1.0, 2.0], [True, True])
  for got, want in zip(
    jax.tree.leaves(padded), jax.tree.leaves(plain), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_weights_are_bounded_and_begin_at_one():
  form = evidence.Form(pooled_rate=1.0, own_rate=1.0, bound=5.0)
  effects = jnp.array([-50.0, 0.0, 50.0])
  np.testing.assert_allclose(
    form.weights(effects, 0.0), [0.0, 1.0, 5.0], atol=1e-6
  )
