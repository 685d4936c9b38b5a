"""Matrices that an adapter targets, held: the problem without them."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel_jax import errors
from bilevel_jax.bilevel import implicit
from bilevel_jax.bilevel.problem import Problem, gradient
from bilevel_jax.methods import hypergradients, terms
from bilevel_jax.models import lora
from bilevel_jax.training import learner
from tests import tabular, tiny_run
from tests.methods import conftest, sgd
from tests.models import tiny

TARGETS = ("q", "down")
FORMS = {
  "penalty": {},
  "penalty, one_step": {"rl_only_base": "one_step"},
  "unrolled": {"inner_steps": 2},
  "implicit": {"solver_iterations": 3},
  "one_step": {"rl_only_base": "one_step", "mixed_product": "exact"},
}


@pytest.fixture(scope="module")
def world():
  policy = tiny_run.make_policy(
    dataclasses.replace(tiny_run.ARCHITECTURE, layers=1, vocab_size=7),
    adapter=lora.Spec(rank=2, alpha=2.0, targets=TARGETS),
  )
  base, adapter = tiny.weights(policy)
  sampled = conftest.batches(np.random.default_rng(3), sft=2, rl=4)
  rl = dataclasses.replace(
    sampled.rl, old_logprobs=np.full(sampled.rl.weights.shape, -2, np.float32)
  )
  return conftest.World(policy, base, adapter, sampled.sft, rl)


def _method(world, form, *, freeze):
  own = {"hypergradient": form.split(",")[0], **FORMS[form]}
  settings = conftest.settings_of(
    "bridge",
    {
      "adapter.targets": TARGETS,
      "method.bridge.freeze_adapted": freeze,
      "optimizer.base.name": "adamw",
      "optimizer.base.weight_decay": 0.1,
      "optimizer.base.clip_norm": 0.05,
    }
    | {f"method.bridge.{name}": value for name, value in own.items()},
  )
  return learner.build_method(settings, world.policy)


def _update(world, method):
  return sgd.run(method, world.start(method), world.batch())


def _without(tree):
  layers = {k: v for k, v in tree["layers"].items() if k not in TARGETS}
  return {**tree, "layers": layers}


def _held(world):
  """The world whose base is all but the adapter's targets, which are fixed."""
  fill = lambda base: {
    **base,
    "layers": world.base["layers"] | base["layers"],
  }
  of = lambda function: lambda base, *args: function(fill(base), *args)
  policy = world.policy._replace(
    hidden=of(world.policy.hidden),
    unembedding=of(world.policy.unembedding),
  )
  return dataclasses.replace(world, policy=policy, base=_without(world.base))


@pytest.mark.parametrize("form", FORMS)
def test_held_matrices_are_constants_of_the_problem(world, form):
  method, moving = (_method(world, form, freeze=f) for f in (True, False))
  start, plain = (
    jax.eval_shape(m.init, world.base, world.adapter) for m in (method, moving)
  )
  chex.assert_trees_all_equal_shapes_and_dtypes(start, plain)
  after, metrics = _update(world, method)
  held = _held(world)
  want, expected = _update(held, _method(held, form, freeze=False))
  for name in ("base", "rl_only_base"):
    found = getattr(after, name)
    if found is None:
      continue
    for target in TARGETS:
      chex.assert_trees_all_equal(
        found["layers"][target], world.base["layers"][target]
      )
    chex.assert_trees_all_close(
      _without(found), getattr(want, name), rtol=2e-5, atol=2e-5
    )
  chex.assert_trees_all_close(after.adapter, want.adapter, rtol=1e-4, atol=1e-5)
  for name in ("sft/gradient_norm", "rl/gradient_norm"):
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4)


@pytest.mark.parametrize("freeze", [False, True])
def test_a_base_that_is_at_its_optimum_undoes_the_adapter(freeze):
  """The two parts of the hypergradient cancel, but where the base is held.

  A bigram policy, of a matrix that the adapter targets and an offset. The
  lower level is the expected reward of every next token less a KL, exact; the
  rewards are such that the policy is its optimum.
  """
  size, scale = 6, 0.5
  with jax.enable_x64(True):
    key = iter(jax.random.split(jax.random.key(0), 8))
    normal = lambda *shape: jax.random.normal(next(key), shape)
    base = {
      "layers": {"q": {"kernel": normal(1, size, size)}},
      "offset": normal(size),
    }
    adapter = {"q": {"A": normal(1, size, 2), "B": normal(1, 2, size)}}

    def table(base, adapter):
      merged = lora.merge_layer(base["layers"], adapter, scale)
      return merged["q"]["kernel"][0] + base["offset"][None]

    policy = tabular.policy(size)._replace(
      hidden=lambda base, adapter, tokens, *_: table(base, adapter)[tokens],
      unembedding=lambda base: jnp.eye(size),
    )
    optimum = jax.nn.log_softmax(table(base, adapter))
    reference = jax.nn.log_softmax(normal(size, size))
    rewards = 0.3 * (optimum - reference)

    def minus_reward(base, adapter, batch):
      del batch
      now = jax.nn.log_softmax(table(base, adapter))
      value = rewards - 0.3 * (now - reference)
      return -jnp.sum(jnp.exp(now) * value) / size, {}

    levels = hypergradients.Levels(
      Problem(terms.sft_objective(policy, chunk=64), minus_reward),
      gradient,
      dict.fromkeys(("base", "rl_only_base"), optax.sgd(0.1)),
    )
    if freeze:
      levels = hypergradients.frozen(levels, ("q",))
    upper, lower = map(gradient, levels.problem)
    demonstrations = conftest.batches(np.random.default_rng(1), sft=6, rl=4).sft
    demonstrations = dataclasses.replace(
      demonstrations, tokens=demonstrations.tokens % size
    )
    solve = implicit.conjugate_gradient(iterations=100, tolerance=1e-10)
    found = jax.jit(functools.partial(implicit.implicit(solve), upper, lower))(
      base, adapter, demonstrations, None
    )
    assert found.diagnostics["residual"] < 1e-8
    assert found.diagnostics["lower_gradient_norm"] < 1e-12
    direct, both = map(optax.tree.norm, (found.direct, found.gradient))
    assert direct > 0.1
    if freeze:
      assert both > 0.5 * direct
    else:
      assert both < 1e-6 * direct


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"method.bridge.upper": "demonstrations"}, "must be False, got True"),
    ({}, "must leave out one or more of q, k, v, o, gate, up, down, got q, k"),
    (
      {"adapter.targets": ("down", "up", "gate", "o", "v", "k", "q")},
      "must leave the base a matrix to train",
    ),
  ],
)
def test_what_it_cannot_have_is_refused(changes, said):
  with pytest.raises(errors.ConfigError, match=said):
    conftest.settings_of(
      "bridge", {"method.bridge.freeze_adapted": True} | changes
    )


@pytest.mark.parametrize(
  ("freeze", "given", "adapter", "form"),
  [
    (True, None, True, "penalty"),
    (False, None, False, "one_step"),
    (True, "implicit", True, "implicit"),
    (False, "unrolled", False, "unrolled"),
  ],
)
def test_auto_takes_the_adapter_where_it_cannot_be_undone(
  world, freeze, given, adapter, form
):
  changes = {
    "adapter.targets": TARGETS,
    "method.bridge.upper": "auto",
    "method.bridge.freeze_adapted": freeze,
    "method.bridge.hypergradient": given,
  }
  settings = conftest.settings_of("bridge", changes)
  method = learner.build_method(settings, world.policy)
  assert settings.method.own.form == form
  assert method.needs.adapter is adapter
  assert (method.ranking is None) is adapter
