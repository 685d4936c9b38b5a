"""The policy as its own teacher: limits, and gradients by enumeration."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import errors, types
from bilevel_jax.methods import self_teacher
from tests.methods import conftest, sgd

MEASURES = ("k2", "k3", "forward", "reverse", "js")


def _taught(world, places=None):
  """What a teacher reads that has the policy's own prompt."""
  method = world.method("self_teacher")
  taught = world.host(method).batches[0].teacher
  return (
    taught if places is None else dataclasses.replace(taught, places=places)
  )


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("weights", ["policy", "average", "start"])
def test_with_the_same_prompt_it_is_rl_alone(world, measure, weights):
  """The teacher thinks what the policy thinks: its term and gradient are 0."""
  method = world.method(
    "self_teacher", measure=measure, weights=weights, weight=5.0
  )
  state, _ = sgd.run(method, world.start(method), world.batch(method))
  expected, _ = sgd.step(world, "grpo")
  chex.assert_trees_all_close(state.base, expected.base, atol=1e-6)


@pytest.mark.parametrize(
  ("measure", "top"),
  [*((m, None) for m in MEASURES), *((m, 3) for m in MEASURES[2:])],
)
def test_its_gradient_is_that_of_the_sum_over_the_vocabulary(
  world, measure, top
):
  """From another base's opinion, at each weighted token of the rows heard."""
  rl_weight, weight = 0.0, 5.0
  method = world.method(
    "self_teacher",
    measure=measure,
    top=top,
    weights="start",
    weight=weight,
    rl_weight=rl_weight,
    listens="wrong",
  )
  other = {"table": world.base["table"] + np.linspace(-1, 1, 49).reshape(7, 7)}
  state = world.start(method)
  state = dataclasses.replace(state, extra={"teacher": other})
  batch = world.batch(method)
  after, metrics = sgd.run(method, state, batch)
  rl = batch.rl
  heard = (1 - np.asarray(rl.correct))[:, None] * np.asarray(rl.weights)
  tokens = np.asarray(rl.tokens)

  def loss(base):
    logits = base["table"][tokens[:, :-1]]
    p = jax.nn.log_softmax(logits)
    t = jax.nn.log_softmax(other["table"][tokens[:, :-1]])
    if measure in ("k2", "k3"):
      at = lambda x: jnp.take_along_axis(x, tokens[:, 1:, None], -1)[..., 0]
      d = at(t) - jax.lax.stop_gradient(at(p))
      shift = d if measure == "k2" else jnp.expm1(d)
      each = -shift * at(p)
    else:
      if top is not None:
        ids = jnp.argsort(-t, axis=-1)[..., :top]
        t, p = (
          jnp.concatenate(
            [x, jnp.log(1 - jnp.exp(x).sum(-1, keepdims=True))], -1
          )
          for x in (jnp.take_along_axis(y, ids, -1) for y in (t, p))
        )
      kl = lambda a, b: jnp.sum(jnp.exp(a) * (a - b), axis=-1)
      mean = jnp.log((jnp.exp(t) + jnp.exp(p)) / 2)
      each = {
        "forward": kl(t, p),
        "reverse": kl(p, t),
        "js": (kl(t, mean) + kl(p, mean)) / 2,
      }[measure]
    return weight * jnp.sum(heard[:, 1:] * each)

  expected = sgd.descended(world.base, jax.grad(loss)(world.base))
  chex.assert_trees_all_close(after.base, expected, atol=1e-6)
  moved = np.abs(np.asarray(after.base["table"] - world.base["table"])).max()
  assert moved > 1e-4
  scored = np.asarray(rl.scored)
  share = (scored * (1 - np.asarray(rl.correct))).sum() / scored.sum()
  np.testing.assert_allclose(metrics["mix/taught_share"], share, rtol=1e-6)


def test_a_question_without_a_teacher_is_learned_from_by_rl(world):
  method = world.method("self_teacher", weights="start", weight=3.0)
  state = world.start(method)
  other = jax.tree.map(lambda x: x + np.eye(7, dtype=np.float32), world.base)
  state = dataclasses.replace(state, extra={"teacher": other})
  batch = world.batch(method)
  nowhere = np.full(batch.rl.tokens.shape, -1)
  unheard = dataclasses.replace(
    batch, teacher=dataclasses.replace(batch.teacher, places=nowhere)
  )
  after, metrics = sgd.run(method, state, unheard)
  expected, _ = sgd.step(world, "grpo")
  chex.assert_trees_all_close(after.base, expected.base, atol=1e-6)
  assert metrics["mix/taught_share"] == 0


def test_the_slow_average_follows_what_learns(world):
  method = world.method(
    "self_teacher", weights="average", average_decay=0.75, weight=0.0
  )
  state = world.start(method)
  after, _ = sgd.run(method, state, world.batch(method))
  expected = jax.tree.map(
    lambda old, new: 0.75 * old + 0.25 * new, world.base, after.base
  )
  chex.assert_trees_all_close(after.extra["teacher"], expected, atol=1e-7)


def test_values_come_to_the_tokens_that_they_are_of():
  values = jnp.arange(12.0).reshape(2, 6)
  places = np.array([[-1, 3, 4, -1], [-1, -1, 2, 5]])
  teacher = types.Taught(
    tokens=None,
    positions=None,
    segment_ids=None,
    weights=None,
    places=places,
  )
  found = self_teacher.at_places(values, teacher)
  np.testing.assert_array_equal(found, [[0, 3, 4, 0], [0, 0, 8, 11]])
  wide = self_teacher.at_places(jnp.stack([values, -values], -1), teacher)
  np.testing.assert_array_equal(wide[..., 1], -found)


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"prompt": "{question}"}, "must have {solution}"),
    ({"top": 5, "measure": "k3"}, "must be forward, reverse or js"),
  ],
)
def test_what_does_not_fit_is_refused(world, options, said):
  with pytest.raises(errors.ConfigError, match=said):
    conftest.settings_of(
      "self_teacher",
      {f"method.self_teacher.{n}": v for n, v in options.items()},
    )
