"""Rows of an embedding that no token has: as if they were not there.

The oracle is the same model with these rows left out of its table.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_jax import types
from bilevel_jax.methods import terms
from bilevel_jax.models import presets
from bilevel_jax.objectives import logprobs
from bilevel_jax.rollout import assemble, engine
from tests.models import tiny

ROWS = 96
CASES = {
  "at the end": frozenset(range(40, ROWS)),
  "a hole": frozenset({7}),
  "holes and the end": frozenset({0, 3, 50, *range(90, ROWS)}),
}
cases = pytest.mark.parametrize("without", CASES.values(), ids=CASES.keys())


def _kept(without):
  return np.array([i for i in range(ROWS) if i not in without])


@cases
def test_log_probs_are_those_of_a_table_without_the_rows(without):
  """Values, entropies, gradients and a second derivative, in chunks."""
  kept = _kept(without)
  keys = jax.random.split(jax.random.key(0), 3)
  states = jax.random.normal(keys[0], (3, 11, 8))
  table = jax.random.normal(keys[1], (8, ROWS))
  # Their logits are the largest by far: what counts them is seen.
  table = table.at[:, list(without)].mul(9)
  chosen = jax.random.randint(keys[2], (3, 11), 0, len(kept))

  def moments(table, targets, **options):
    def loss(states, table):
      found = logprobs.target_logprobs(
        states,
        table,
        targets,
        temperature=0.7,
        chunk=9,
        with_entropy=True,
        **options,
      )
      return jnp.sin(found[0]).sum(), found

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    twice = jax.grad(lambda s, t: (gradient(s, t)[0][0] ** 2).sum(), (0, 1))
    return *gradient(states, table), twice(states, table)

  first, values, second = moments(
    table, jnp.asarray(kept)[chosen], without_token=without
  )
  expected, expected_values, expected_second = moments(table[:, kept], chosen)
  chex.assert_trees_all_close(values, expected_values, rtol=1e-5, atol=1e-5)
  for (by_states, by_table), (states_, table_) in (
    (first, expected),
    (second, expected_second),
  ):
    np.testing.assert_allclose(by_states, states_, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_table[:, kept], table_, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(by_table[:, list(without)], 0)


@cases
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_sampled_has_a_token_and_the_learners_log_prob(without, tied):
  """The ratio of a sample is 1: both softmaxes are over the same tokens."""
  architecture = dataclasses.replace(
    presets.get("tiny-qwen3"), tied_embeddings=tied
  )
  policy = tiny.make(architecture, without_token=without)
  base, adapter = tiny.weights(policy)
  weights = jax.jit(policy.merge)(base, adapter)
  requests = types.Requests(
    prompts=[np.array([5, 9, 11], np.int32)],
    prompt_ids=np.arange(1),
    samples_per_prompt=64,
    max_new_tokens=16,
    eos_ids=(1,),
    sampling=types.Sampling(temperature=1.3),
    key=jax.random.key(0),
  )
  rollout = engine.generate(policy, weights, requests)
  sampled = rollout.tokens[rollout.logprobs < 0]
  assert len(sampled) > 300
  assert not without & set(sampled.tolist())
  batch = assemble.token_batch(
    [
      (requests.prompts[0], row[:length])
      for row, length in zip(rollout.tokens, rollout.lengths, strict=True)
    ],
    lambda mask: mask,
  )

  def learned(policy):
    found, _ = terms.token_logprobs(
      policy, base, adapter, batch, temperature=1.3, chunk=64
    )
    return np.asarray(found)[np.asarray(batch.weights) > 0]

  expected = rollout.logprobs[rollout.logprobs < 0]
  np.testing.assert_allclose(learned(policy), expected, atol=1e-5)
  # A softmax over all rows has less for each.
  assert (learned(tiny.make(architecture)) < expected).all()
