"""Requests of a bigram table and a tiny model, and what any answer must be."""

import functools

import jax
import numpy as np

from bilevel_jax import types
from bilevel_jax.rollout import engine
from tests import tabular
from tests.models import tiny

VOCAB = 6
TABLE = tabular.policy(VOCAB)
STOP, LENGTH, ERROR = range(3)


@functools.cache
def table():
  base = jax.device_get(TABLE.init(jax.random.key(7)))
  return {"table": base["table"].astype(np.float32)}


@functools.cache
def tiny_model():
  policy = tiny.make("tiny-qwen3")
  base, adapter = tiny.weights(policy)
  return policy, base, adapter, jax.jit(policy.merge)(base, adapter)


def requests(prompts=((1, 2), (3,), (0, 4, 5, 1)), **changes):
  prompts = [np.array(prompt, np.int32) for prompt in prompts]
  settings = {
    "prompt_ids": np.arange(len(prompts)) + 10,
    "samples_per_prompt": 4,
    "max_new_tokens": 12,
    "eos_ids": (0,),
    "sampling": types.Sampling(),
    "key": jax.random.key(0),
  }
  return types.Requests(prompts=prompts, **(settings | changes))


def generate(requests, **options):
  return engine.generate(TABLE, table(), requests, **options)


def log_softmax(x, temperature=1.0):
  x = np.asarray(x, np.float64) / temperature
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def same(rollout, other, *, atol=1e-6):
  np.testing.assert_array_equal(rollout.tokens, other.tokens)
  np.testing.assert_array_equal(rollout.lengths, other.lengths)
  np.testing.assert_array_equal(rollout.finish_reasons, other.finish_reasons)
  np.testing.assert_allclose(rollout.logprobs, other.logprobs, atol=atol)


def well_formed(rollout):
  requests = rollout.requests
  eos = np.isin(rollout.tokens, requests.eos_ids)
  for n, length in enumerate(rollout.lengths):
    reason = rollout.finish_reasons[n]
    budget = requests.budgets[rollout.prompt_index[n]]
    assert (reason == ERROR) or 1 <= length <= budget
    assert not eos[n, : max(length - 1, 0)].any()
    if reason != ERROR:
      assert eos[n, length - 1] == (reason == STOP)
    if reason == LENGTH:
      assert length == budget
    assert not rollout.tokens[n, length:].any()
    assert not rollout.logprobs[n, length:].any()
    assert (rollout.logprobs[n, :length] <= 0).all()
