"""Ragged completions as rectangular batches: nothing lost, nothing invented."""

import dataclasses

import jax
import numpy as np
import pytest

from bilevel_jax import types
from bilevel_jax.objectives import policy_gradient, weighting
from bilevel_jax.rollout import assemble

EOS = 0  # the padding id, too: no mask may come from token values


def _rollout(seed=0, prompts=3, samples=4, budget=6):
  rng = np.random.default_rng(seed)
  total = prompts * samples
  lengths = rng.integers(1, budget + 1, total).astype(np.int32)
  tokens = rng.integers(1, 9, (total, budget)).astype(np.int32)
  logprobs = -rng.random((total, budget)).astype(np.float32)
  stopped = rng.random(total) < 0.5
  for row in range(total):
    tokens[row, lengths[row] :] = 0
    logprobs[row, lengths[row] :] = 0
    if stopped[row]:
      tokens[row, lengths[row] - 1] = EOS
  return types.Rollout(
    requests=types.Requests(
      prompts=[
        rng.integers(0, 9, rng.integers(1, 5)).astype(np.int32)
        for _ in range(prompts)
      ],
      prompt_ids=np.arange(prompts, dtype=np.uint32),
      samples_per_prompt=samples,
      max_new_tokens=budget,
      eos_ids=(EOS,),
      sampling=types.Sampling(),
      key=jax.random.key(0),
    ),
    tokens=tokens,
    lengths=lengths,
    logprobs=logprobs,
    finish_reasons=np.where(stopped, 0, 1).astype(np.int8),
  )


def _scores(rollout, seed=0):
  rng = np.random.default_rng(seed)
  total = len(rollout.tokens)
  scored = rng.random(total) < 0.8
  rewards = np.where(scored, rng.random(total), 0.0).astype(np.float32)
  return types.Scores(rewards=rewards, scored=scored, correct=rewards > 0.5)


def _batches(rollout, scores, **changes):
  arguments = {"normalise": "group_std"} | changes
  return assemble.minibatches(
    rollout, scores, weighting.token_mean, **arguments
  )


def test_tokens_come_back_as_they_were_sampled():
  rollout = _rollout()
  (batch,) = _batches(rollout, _scores(rollout))
  for n, prompt_index in enumerate(rollout.prompt_index):
    prompt = rollout.requests.prompts[prompt_index]
    completion = rollout.tokens[n, : rollout.lengths[n]]
    whole = np.concatenate([prompt, completion])
    np.testing.assert_array_equal(batch.tokens[n, : len(whole)], whole)
    np.testing.assert_array_equal(
      batch.segment_ids[n], np.arange(batch.tokens.shape[1]) < len(whole)
    )
    np.testing.assert_array_equal(
      batch.positions[n, : len(whole)], np.arange(len(whole))
    )
    start = len(prompt)
    np.testing.assert_array_equal(
      batch.sampler_logprobs[n, start : len(whole)],
      rollout.logprobs[n, : rollout.lengths[n]],
    )


def test_an_eos_that_is_also_the_padding_has_weight_and_advantage():
  rollout = _rollout()
  scores = dataclasses.replace(
    _scores(rollout), scored=np.ones(len(rollout.tokens), bool)
  )
  (batch,) = _batches(rollout, scores)
  lengths = np.array([len(p) for p in rollout.requests.prompts])
  last = lengths[rollout.prompt_index] + rollout.lengths - 1
  rows = np.flatnonzero(rollout.finish_reasons == 0)
  assert len(rows)
  np.testing.assert_array_equal(batch.tokens[rows, last[rows]], EOS)
  assert (batch.weights[rows, last[rows]] > 0).all()
  assert (batch.advantages[rows, last[rows]] != 0).all()
  assert (batch.weights[rows, last[rows] + 1] == 0).all()


def test_weights_cover_the_completions_that_were_scored_and_nothing_else():
  rollout = _rollout()
  scores = _scores(rollout)
  (batch,) = _batches(rollout, scores)
  expected = np.zeros(batch.weights.shape, bool)
  for n, prompt_index in enumerate(rollout.prompt_index):
    start = len(rollout.requests.prompts[prompt_index])
    expected[n, start : start + rollout.lengths[n]] = scores.scored[n]
  np.testing.assert_array_equal(batch.weights > 0, expected)
  np.testing.assert_allclose(batch.weights.sum(), 1.0, rtol=1e-6)


def test_advantages_are_those_of_the_groups():
  rollout = _rollout()
  scores = _scores(rollout)
  (batch,) = _batches(rollout, scores)
  expected, baselines = policy_gradient.group_advantages(
    scores.rewards.reshape(3, 4),
    scores.scored.reshape(3, 4),
    rollout.lengths.reshape(3, 4),
    normalise="group_std",
  )
  largest = np.take_along_axis(
    batch.advantages, np.abs(batch.advantages).argmax(1)[:, None], 1
  )
  np.testing.assert_allclose(largest[:, 0], expected.ravel())
  np.testing.assert_allclose(batch.baselines, baselines.ravel())


@pytest.mark.parametrize("updates", [1, 2])
def test_what_a_teacher_reads_are_the_same_completions(updates):
  """After its own prompt; nothing of a question that has no teacher."""
  rollout = _rollout()
  how = {"updates": updates, "passes": 2, "seed": (3,), "columns": 24}
  batches = _batches(rollout, _scores(rollout), **how)
  prompts = [np.array([5, 6, 7, 8]), np.zeros(0, int), np.array([3])]
  taught = assemble.taught(rollout, prompts, **how)
  assert len(taught) == len(batches) == 2 * updates
  for batch, teacher in zip(batches, taught, strict=True):
    for row, question in enumerate(batch.questions):
      start = len(rollout.requests.prompts[question])
      end = int(batch.segment_ids[row].sum())
      places = teacher.places[row]
      if question == 1:
        assert (places == -1).all()
        assert not teacher.weights[row].any()
        continue
      np.testing.assert_array_equal(
        teacher.tokens[row, places[start:end]], batch.tokens[row, start:end]
      )
      np.testing.assert_array_equal(
        teacher.tokens[row, : places[start]], prompts[question]
      )
      assert (teacher.weights[row, places[start:end]] == 1).all()
      assert np.count_nonzero(teacher.weights[row]) == end - start


def test_given_tokens_may_be_weighted_among_themselves():
  """A hint of 50 tokens and 10 sampled: together these have 1/6 of a weight."""
  rollout = _rollout(prompts=1, samples=1, budget=60)
  rollout = dataclasses.replace(
    rollout,
    requests=dataclasses.replace(
      rollout.requests, prefixes=[rollout.tokens[0, :50]]
    ),
    lengths=np.array([60], np.int32),
  )
  scores = types.Scores(
    rewards=np.ones(1, np.float32),
    scored=np.ones(1, bool),
    correct=np.ones(1, bool),
  )
  for apart, expected in ((False, 10 / 60), (True, 1.0)):
    (batch,) = _batches(
      rollout, scores, skipped=np.zeros(1, int), given_apart=apart
    )
    sampled = batch.weights * (1 - batch.prefixed)
    given = batch.weights * batch.prefixed
    np.testing.assert_allclose(sampled.sum(), expected, rtol=1e-5)
    np.testing.assert_allclose(given.sum(), expected * (5 - 4 * apart), 1e-5)
    assert np.count_nonzero(sampled) == 10


def test_minibatches_go_through_every_row_once_a_pass():
  rollout = _rollout()
  scores = _scores(rollout)
  batches = _batches(rollout, scores, updates=3, passes=2, seed=(5, 1))
  assert len(batches) == 6
  for i in (0, 3):
    seen = np.concatenate([batch.tokens[:4] for batch in batches[i : i + 3]])
    (whole,) = _batches(rollout, scores)
    order = lambda x: sorted(map(tuple, x.tolist()))
    assert order(seen) == order(whole.tokens)
  for batch in batches:
    total = batch.weights.sum()
    assert total == 0 or abs(total - 1) < 1e-6
  again = _batches(rollout, scores, updates=3, passes=2, seed=(5, 1))
  for left, right in zip(batches, again, strict=True):
    np.testing.assert_array_equal(left.tokens, right.tokens)


def test_rollouts_without_advantage_lose_their_weight_and_no_other_changes():
  rollout = _rollout()
  scores = _scores(rollout)
  scores.rewards[:4] = 0.5  # the first group is all equal
  (batch,) = _batches(rollout, scores)
  idle = (batch.advantages == 0).all(axis=1)
  assert idle[:4].all()
  assert not idle.all()
  assert batch.weights[:4].any()
  busy = assemble.skip_idle(batch)
  assert not busy.weights[idle].any()
  np.testing.assert_array_equal(busy.weights[~idle], batch.weights[~idle])


def test_nothing_precedes_the_first_column_so_it_never_counts():
  pair = (np.zeros(0, np.int32), np.array([3, 4], np.int32))
  batch = assemble.token_batch([pair], weighting.token_mean)
  np.testing.assert_array_equal(batch.weights[0, :3], [0, 1, 0])


def test_demonstrations_bring_what_is_theirs_to_their_rows():
  tokens = lambda *values: np.array(values, np.int32)
  shown = [
    types.Demonstration(7, tokens(5, 6), tokens(3, 4, 0), tokens(-1, -2, -3)),
    types.Demonstration(2, tokens(8), tokens(1), tokens(-4)),
    types.Demonstration(9, tokens(1, 2, 3), tokens(), tokens()),
  ]
  plain = assemble.token_batch(
    [(d.prompt, d.solution) for d in shown], weighting.token_mean, rows=5
  )
  batch = assemble.demonstration_batch(
    shown,
    weighting.token_mean,
    rows=5,
    coefficients=np.array([0.5, -2.0, 3.0]),
    group_advantages=np.array([1.0, 2.0, 3.0]),
    with_logprobs=True,
  )
  np.testing.assert_array_equal(batch.tokens, plain.tokens)
  assert batch.ids.dtype == np.int32
  assert batch.ids.tolist() == [7, 2, 9, 0, 0]
  assert batch.group_advantages.tolist() == [[1], [2], [3], [0], [0]]
  np.testing.assert_allclose(
    batch.weights[:, :5],
    np.array([[0, 0, 0.5, 0.5, 0.5], [0, -2, 0, 0, 0], *[[0] * 5] * 3]) / 4,
  )
  expected = np.zeros_like(batch.weights)
  expected[0, 2:5], expected[1, 1] = [-1, -2, -3], -4
  np.testing.assert_array_equal(batch.expert_logprobs, expected)
  bare = assemble.demonstration_batch(shown, weighting.token_mean)
  assert bare.ids.tolist() == [7, 2, 9]
  assert bare.expert_logprobs is None
  assert bare.group_advantages is None
  np.testing.assert_array_equal(bare.weights, plain.weights[:3])


def test_what_does_not_fit_is_refused():
  pair = (np.ones(3, np.int32), np.ones(3, np.int32))
  with pytest.raises(ValueError, match="2 rows of up to 6 tokens do not fit"):
    assemble.token_batch([pair, pair], weighting.token_mean, rows=1)


def _guided():
  """A rollout whose rows began with 0 to 3 given tokens."""
  rollout = _rollout()
  given = np.minimum(np.arange(12) % 4, rollout.lengths)
  prefixes = [rollout.tokens[n, :length] for n, length in enumerate(given)]
  requests = dataclasses.replace(rollout.requests, prefixes=prefixes)
  return dataclasses.replace(rollout, requests=requests), given


@pytest.mark.parametrize("counts", [False, True])
def test_given_tokens_are_marked_and_weigh_only_if_they_are_to(counts):
  rollout, given = _guided()
  scores, counted = _scores(rollout), np.arange(12) % 2 == 0
  skipped = np.where(counted, 0, given) if counts else None
  (batch,) = _batches(rollout, scores, skipped=skipped)
  (plain,) = _batches(_rollout(), scores)
  np.testing.assert_array_equal(batch.tokens, plain.tokens)
  np.testing.assert_array_equal(batch.segment_ids, plain.segment_ids)
  assert plain.prefixed is None
  for n in range(12):
    start = len(rollout.requests.prompts[n // 4])
    own, end = start + given[n], start + rollout.lengths[n]
    assert batch.prefixed[n].nonzero()[0].tolist() == list(range(start, own))
    first = start if counts and counted[n] else own
    weighed = range(first, end) if scores.scored[n] else []
    weighed = [column for column in weighed if column > 0]
    assert batch.weights[n].nonzero()[0].tolist() == weighed
  np.testing.assert_allclose(batch.weights.sum(), 1.0, rtol=1e-6)


def test_what_does_not_count_still_has_a_part_in_the_advantages():
  rollout = _rollout()
  scores = types.Scores(
    rewards=np.arange(12, dtype=np.float32),
    scored=np.ones(12, bool),
    correct=np.ones(12, bool),
  )
  counted = np.arange(12) % 3 > 0
  (batch,) = _batches(rollout, scores, counted=counted)
  (plain,) = _batches(rollout, scores)
  np.testing.assert_array_equal(batch.weights.any(axis=1), counted)
  np.testing.assert_array_equal(
    batch.advantages, plain.advantages * counted[:, None]
  )
