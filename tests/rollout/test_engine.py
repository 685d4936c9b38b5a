"""Completions against enumeration, plain loops and the full forward pass."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from bilevel_jax import errors, types
from bilevel_jax.rollout import engine
from tests.rollout import completions


def test_sequences_have_the_frequencies_that_enumeration_gives():
  budget, eos, samples, last = 3, 0, 4096, 2
  requests = completions.requests(
    [(1, last)], samples_per_prompt=samples, max_new_tokens=budget
  )
  rollout = completions.generate(requests, segment=2)
  completions.well_formed(rollout)
  logp = completions.log_softmax(completions.table()["table"])
  chances = {}
  for sequence in itertools.product(range(completions.VOCAB), repeat=budget):
    ends = [i for i, token in enumerate(sequence) if token == eos]
    sequence = sequence[: ends[0] + 1 if ends else budget]
    path = (last, *sequence)
    chances[sequence] = math.exp(
      sum(logp[a, b] for a, b in itertools.pairwise(path))
    )
  assert sum(chances.values()) == pytest.approx(1)
  counts = dict.fromkeys(chances, 0)
  for tokens, length in zip(rollout.tokens, rollout.lengths, strict=True):
    counts[tuple(tokens[:length].tolist())] += 1
  common = [s for s in chances if samples * chances[s] >= 5]
  expected = np.array([samples * chances[s] for s in common])
  seen = np.array([counts[s] for s in common])
  expected = np.append(expected, samples - expected.sum())
  seen = np.append(seen, samples - seen.sum())
  statistic = ((seen - expected) ** 2 / expected).sum()
  freedom = len(common)
  assert freedom > 50
  assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_logprobs_are_those_of_the_table():
  rollout = completions.generate(completions.requests())
  logp = completions.log_softmax(completions.table()["table"])
  for n, length in enumerate(rollout.lengths):
    prompt = rollout.requests.prompts[rollout.prompt_index[n]]
    path = np.append(prompt[-1], rollout.tokens[n, :length])
    np.testing.assert_allclose(
      rollout.logprobs[n, :length], logp[path[:-1], path[1:]], atol=1e-6
    )


def test_greedy_is_the_argmax_loop_of_the_full_forward_pass():
  policy, base, adapter, weights = completions.tiny_model()
  prompts = [np.array([3, 1, 4, 1, 5]), np.array([9])]
  requests = completions.requests(
    prompts,
    samples_per_prompt=1,
    max_new_tokens=6,
    eos_ids=(),
    sampling=types.Sampling(temperature=0.0),
  )
  rollout = engine.generate(policy, weights, requests)
  forward = jax.jit(policy.hidden)
  for prompt, tokens, logprobs in zip(
    prompts, rollout.tokens, rollout.logprobs, strict=True
  ):
    row = np.zeros((1, 16), np.int32)
    row[0, : len(prompt)] = prompt
    for t in range(6):
      at = len(prompt) + t
      hidden = forward(
        base,
        adapter,
        row,
        np.arange(16)[None],
        (np.arange(16) < at).astype(np.int32)[None],
      )
      logp = completions.log_softmax(
        hidden[0, at - 1] @ policy.unembedding(base)
      )
      row[0, at] = logp.argmax()
      assert tokens[t] == row[0, at]
      assert logprobs[t] == pytest.approx(logp.max(), abs=1e-5)


def test_another_key_prompt_id_or_sample_draws_other_tokens():
  requests = completions.requests([(1, 2)] * 3, eos_ids=(), max_new_tokens=20)
  rollout = completions.generate(requests)
  assert len({tuple(row) for row in rollout.tokens}) == 12
  other = dataclasses.replace(requests, key=jax.random.key(1))
  other = completions.generate(other)
  assert (other.tokens != rollout.tokens).any(1).all()


def test_any_eos_of_the_set_ends_a_row_and_is_counted():
  rollout = completions.generate(completions.requests(eos_ids=(0, 3, 5)))
  completions.well_formed(rollout)
  last = rollout.tokens[np.arange(12), rollout.lengths - 1]
  assert len(set(last[rollout.finish_reasons == completions.STOP])) > 1


def _certain(token):
  """A table in which `token` follows every token."""
  return {
    "table": np.where(np.arange(completions.VOCAB) == token, 50.0, 0.0).astype(
      np.float32
    )[None]
    * np.ones((completions.VOCAB, 1), np.float32)
  }


def test_an_eos_may_be_the_first_token():
  rollout = engine.generate(
    completions.TABLE, _certain(0), completions.requests()
  )
  assert (rollout.lengths == 1).all()
  assert (rollout.finish_reasons == completions.STOP).all()
  assert not rollout.tokens.any()


def test_without_an_eos_the_budget_is_spent_to_the_last_token():
  rollout = engine.generate(
    completions.TABLE, _certain(4), completions.requests(eos_ids=())
  )
  assert (rollout.lengths == 12).all()
  assert (rollout.finish_reasons == completions.LENGTH).all()
  assert (rollout.tokens == 4).all()


def test_an_eos_as_the_last_token_of_the_budget_is_a_stop():
  rollout = engine.generate(
    completions.TABLE, _certain(0), completions.requests(max_new_tokens=1)
  )
  assert (rollout.finish_reasons == completions.STOP).all()


def test_a_budget_of_one_gives_one_token():
  rollout = completions.generate(completions.requests(max_new_tokens=1))
  completions.well_formed(rollout)
  assert rollout.tokens.shape == (12, 1)
  assert (rollout.lengths == 1).all()


def test_greedy_and_sampled_prompts_share_a_batch():
  temperature = np.array([0.0, 1.0, 0.0])
  requests = completions.requests(
    sampling=types.Sampling(temperature=temperature), eos_ids=()
  )
  tokens = completions.generate(requests).tokens.reshape(3, 4, -1)
  follow = completions.table()["table"].argmax(-1)
  for p in (0, 2):
    expected = [follow[requests.prompts[p][-1]]]
    while len(expected) < 12:
      expected.append(follow[expected[-1]])
    assert (tokens[p] == np.array(expected)[None]).all()
  assert len({tuple(row) for row in tokens[1]}) > 1


def test_truncated_tokens_are_never_sampled():
  requests = completions.requests(eos_ids=(), sampling=types.Sampling(top_k=2))
  rollout = completions.generate(requests)
  best = np.argsort(-completions.table()["table"], axis=-1)[:, :2]
  for row, p in zip(rollout.tokens, rollout.prompt_index, strict=True):
    path = np.append(requests.prompts[p][-1], row)
    for before, after in itertools.pairwise(path):
      assert after in best[before]


def test_logits_that_are_not_finite_end_their_row_with_an_error():
  table = _certain(2)["table"]
  table[2] = _certain(3)["table"][2]
  table[3, 1] = np.nan
  requests = completions.requests([(1,), (3,), (5, 2)], eos_ids=())
  rollout = engine.generate(completions.TABLE, {"table": table}, requests)
  completions.well_formed(rollout)
  assert (rollout.finish_reasons == completions.ERROR).all()
  assert rollout.lengths.reshape(3, 4).tolist() == [[2] * 4, [0] * 4, [1] * 4]
  assert rollout.tokens[0].tolist() == [2, 3] + [0] * 10


def test_no_prompts_give_no_rows():
  rollout = completions.generate(completions.requests([]))
  assert rollout.tokens.shape == (0, 12)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"prompts": [(1,), ()]}, "prompt 1 is empty"),
    ({"prompts": [(1, 6)]}, "prompt 0 holds token 6, .* vocabulary of 6"),
    ({"eos_ids": (0, 6)}, "eos_ids holds token 6, .* vocabulary of 6"),
    ({"eos_ids": (-1,)}, "eos_ids holds token -1, .* vocabulary of 6"),
    ({"prompts": [(-1, 2)]}, "prompt 0 holds token -1"),
    (
      {"prompts": [(1,), (1, 2, 3, 4, 5)]},
      "prompt 1 has 5 tokens and needs 17 positions .* but the model has 16",
    ),
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ({"samples_per_prompt": 0}, "samples_per_prompt must be at least 1, got 0"),
    ({"prompt_ids": np.arange(2)}, r"each of the 3 prompts, got shape \(2,\)"),
    ({"sampling": types.Sampling(temperature=-1)}, "temperature must be"),
  ],
)
def test_requests_that_cannot_be_met_are_refused(changes, message):
  with pytest.raises(errors.ConfigError, match=message):
    engine.generate(
      completions.TABLE._replace(max_positions=16),
      completions.table(),
      completions.requests(**changes),
    )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"max_rows": 0}, "max_rows must be at least 1, got 0"),
    ({"segment": 0}, "segment must be at least 1, got 0"),
    ({"cache_step": 12}, "cache_step must be a power of two, got 12"),
    (
      {"cache_bytes": 100},
      "may take 100 bytes, but .* one row of 64 columns, which takes 256",
    ),
  ],
)
def test_options_that_cannot_be_met_are_refused(options, message):
  with pytest.raises(errors.ConfigError, match=message):
    completions.generate(completions.requests(), **options)
