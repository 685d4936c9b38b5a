"""The learner scores what was sampled as the sampler did, however warm."""

import dataclasses
import types as types_lib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import types
from bilevel_jax.methods import terms
from bilevel_jax.objectives import weighting
from bilevel_jax.rollout import assemble, engine
from bilevel_jax.training import step
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
    temperature=temperature,
    clip_low=0.0,
    clip_high=0.0,
    kl_coef=1.0,
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


def test_sft_sees_no_more_than_the_lead_of_a_demonstration():
  """Character tokens: "ab:" of "ab:c" counts, and nothing of "abc"."""
  texts = ["ab:c", "abc"]
  pairs = [
    (np.array([9, 9]), np.array([ord(c) for c in text])) for text in texts
  ]
  decode = lambda tokens: "".join(map(chr, tokens))

  def weights(lead):
    fake = types_lib.SimpleNamespace
    story = fake(
      settings=fake(data=fake(demonstrations_per_step=2)),
      streams=fake(demonstrations=fake(take=lambda start, count: pairs)),
      host={"demonstrations": 0},
      learner=fake(
        method=fake(lead=lead, expert=None),
        sft_weighting=weighting.token_mean,
        demonstration_columns=None,
      ),
      model=fake(tokenizer=fake(decode=decode)),
    )
    return step._demonstrations(story, 1).weights[:, :6]

  np.testing.assert_allclose(
    weights(":"), [[0, 0, 1 / 3, 1 / 3, 1 / 3, 0], [0] * 6]
  )
  np.testing.assert_allclose(
    weights(None), np.array([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]]) / 7
  )
