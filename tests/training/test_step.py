"""The learner scores what was sampled as the sampler did, however warm.

And a step waits for no more than it needs.
"""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import config, types
from bilevel_jax.methods import terms
from bilevel_jax.objectives import policy_gradient, weighting
from bilevel_jax.rollout import assemble, engine
from bilevel_jax.training import run, step
from tests import tiny_run


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_the_first_ratio_is_one_and_the_first_kl_is_zero(temperature):
  policy = tiny_run.make_policy()
  base = jax.jit(policy.init)(jax.random.key(0))
  adapter = jax.jit(policy.init_adapter)(jax.random.key(1))
  # Not the identity: the sampler merges it, the learner folds it in.
  adapter = jax.tree.map(lambda x: x + 0.05, adapter)
  rollout = engine.generate(
    policy,
    jax.jit(policy.merge)(base, adapter),
    types.Requests(
      prompts=[np.array([3, 4, 5], np.int32), np.array([7], np.int32)],
      prompt_ids=np.arange(2, dtype=np.uint32),
      samples_per_prompt=2,
      max_new_tokens=6,
      eos_ids=(1,),
      sampling=types.Sampling(temperature=temperature),
      key=jax.random.key(2),
    ),
  )
  scores = types.Scores(
    rewards=np.array([0, 1, 1, 0], np.float32),
    scored=np.ones(4, bool),
    correct=np.zeros(4, bool),
  )
  (batch,) = assemble.minibatches(
    rollout, scores, weighting.token_mean, normalise="group_std"
  )
  objective = terms.rl_objective(
    policy,
    numbers=policy_gradient.PolicyGradient(
      clip_low=0.0, clip_high=0.0, kl_coef=1.0, importance_cap=None
    ),
    temperature=temperature,
    chunk=64,
  )
  logprobs = jax.jit(
    lambda base, adapter, batch: terms.token_logprobs(
      policy, base, adapter, batch, temperature=temperature, chunk=64
    )[0]
  )(base, adapter, batch)
  counted = batch.weights > 0
  np.testing.assert_allclose(
    np.asarray(logprobs)[counted], batch.sampler_logprobs[counted], atol=1e-5
  )
  batch = dataclasses.replace(
    batch, old_logprobs=logprobs, ref_logprobs=logprobs
  )
  loss, aux = jax.jit(objective)(base, adapter, batch)
  np.testing.assert_allclose(
    jnp.exp(aux["logprobs"] - logprobs)[counted], 1.0, atol=1e-6
  )
  # With ratios of 1 and no KL, what is left is minus the mean advantage.
  expected = -np.sum(batch.weights * batch.advantages)
  np.testing.assert_allclose(loss, expected, atol=1e-6)


class _Unread:
  """A scalar on a device that must not be waited for."""

  shape = ()

  def __float__(self):
    raise AssertionError("it was fetched")


def test_a_scalar_of_the_state_is_fetched_only_when_a_plan_reads_it():
  extra = {"gap": _Unread(), "mu": jnp.float32(0.25), "tree": jnp.zeros(3)}
  scalars = step._Scalars(extra)
  assert list(scalars) == ["gap", "mu"]
  assert len(scalars) == 2
  assert scalars["mu"] == 0.25
  with pytest.raises(AssertionError, match="was fetched"):
    scalars["gap"]
  assert dict(step._Scalars(None)) == {}


@pytest.mark.parametrize(
  ("method", "read"), [("sft", []), ("staged", []), ("sasr", ["sft_next"])]
)
def test_a_step_reads_what_its_plan_does(directory, monkeypatch, method, read):
  """`staged` has a temperature, which its first stage does not read."""
  c = tiny_run.settings(directory)
  c.method.name = method
  gathered, fetched = run.gather(config.parse(c), scorer=mock.Mock()), []

  class Watched(step._Scalars):
    def __getitem__(self, name):
      fetched.append(name)
      return super().__getitem__(name)

  monkeypatch.setattr(step, "_Scalars", Watched)
  result = step.run_step(gathered, 0)
  assert fetched == read
  assert result.answers is None
  assert np.isfinite(result.metrics["sft/loss"])


def test_only_the_scalars_of_a_state_are_among_those_that_a_plan_may_read():
  extra = {"gate": jnp.float32(0.5), "table": jnp.ones(3), "tree": {"a": 1}}
  scalars = step._Scalars(extra)
  assert dict(scalars) == {"gate": 0.5}
  assert len(scalars) == 1
  assert "table" not in scalars
  with pytest.raises(KeyError, match="table"):
    scalars["table"]
