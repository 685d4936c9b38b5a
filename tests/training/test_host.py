"""What a method's program asks of a run, and what it is given."""

import json

import numpy as np
import pytest

from bilevel_jax.methods import contract, mixed
from bilevel_jax.training import host as host_lib
from bilevel_jax.training import run
from bilevel_jax.types import Demonstration, Scores
from tests import tiny_run

PLAN = contract.Plan(rollouts=True, demonstrations=True)


class _Digits:
  """Scores by `tiny_run.digits`, in this process; every fifth not at all."""

  def check(self, questions):
    del questions

  def score(self, completions, questions):
    rewards = [
      tiny_run.digits(*pair)
      for pair in zip(completions, questions, strict=True)
    ]
    scored = np.arange(len(rewards)) % 5 > 0
    return Scores(
      rewards=np.where(scored, rewards, 0).astype(np.float32),
      scored=scored,
      correct=np.array(rewards) > 0.2,
    )


def _gathered(directory, **changes):
  settings = tiny_run.parsed(directory, "run", method__name="mixed", **changes)
  return run.gather(settings, scorer=_Digits())


@pytest.fixture(scope="module")
def gathered(directory):
  return _gathered(directory)


def _host(gathered, step=0, plan=PLAN):
  return host_lib.Host(gathered, step, plan)


def test_groups_are_the_answers_by_question(gathered):
  host = _host(gathered)
  answers = host.sample()
  groups = host.groups(answers)
  own = gathered.streams.demonstrations
  for q, g in np.ndindex(3, 4):
    row = 4 * q + g
    assert groups.rewards[q, g] == answers.scores.rewards[row]
    assert groups.scored[q, g] == (row % 5 > 0)
    assert groups.correct[q, g] == answers.scores.correct[row]
    assert groups.truncated[q, g] == answers.rollout.truncated[row]
    assert groups.prefix_lengths[q, g] == 0
    (expected,) = own.of([answers.questions[row]])
    assert groups.demonstrations[q] is expected
  assert groups.demonstrated.tolist() == [True] * 3


def test_rollouts_have_the_weights_and_advantages_that_are_asked_for(gathered):
  host = _host(gathered)
  answers = host.sample()
  rollout = answers.rollout
  counted = np.arange(12).reshape(3, 4) % 3 > 0
  advantages = 1.0 + np.arange(12).reshape(3, 4)
  skipped = np.arange(12).reshape(3, 4) % 2
  (batch,) = host.rl(
    answers, counted=counted, advantages=advantages, count_from=skipped
  )
  for row, (q, g) in enumerate(np.ndindex(3, 4)):
    weighed = np.flatnonzero(batch.weights[row])
    first = len(rollout.requests.prompts[q]) + skipped[q, g]
    last = len(rollout.requests.prompts[q]) + rollout.lengths[row]
    if not counted[q, g] or row % 5 == 0:
      last = first
    np.testing.assert_array_equal(weighed, np.arange(first, last))
    np.testing.assert_array_equal(
      batch.advantages[row, weighed], advantages[q, g]
    )
  np.testing.assert_allclose(np.sum(batch.weights), 1.0, rtol=1e-6)
  assert batch.temperature is None
  # The KL is to the start, which is the policy still.
  given = np.asarray(batch.weights) > 0
  np.testing.assert_allclose(
    np.asarray(batch.ref_logprobs)[given],
    np.asarray(batch.sampler_logprobs)[given],
    atol=1e-5,
  )


def test_a_plans_temperature_is_that_of_sampling_and_of_scoring(gathered):
  host = _host(gathered, plan=PLAN._replace(temperature=0.5))
  answers = host.sample()
  (batch,) = host.rl(answers)
  assert answers.rollout.requests.sampling.temperature == 0.5
  assert batch.temperature == np.float32(0.5)
  given = np.asarray(batch.weights) > 0
  np.testing.assert_allclose(
    np.asarray(batch.ref_logprobs)[given],
    np.asarray(batch.sampler_logprobs)[given],
    atol=1e-5,
  )


def test_demonstrations_go_on_and_keep_their_ids_on_the_devices(gathered):
  host, before = _host(gathered), gathered.host["demonstrations"]
  sampled = host.demonstrations()
  stream = gathered.streams.demonstrations
  assert sampled == stream.take(before, 4)
  assert gathered.host["demonstrations"] == before + 4
  assert [d.id for d in host.demonstrations_at([7, 2])] == [7, 2]
  batch = host.sft(
    sampled[:3],
    coefficients=np.array([2.0, 0.0, 1.0]),
    group_advantages=np.array([0.5, 1.5, -1.0]),
  )
  assert batch.tokens.shape[0] == 4  # an update's share
  assert batch.ids.tolist() == [*(d.id for d in sampled[:3]), 0]
  assert batch.group_advantages[:, 0].tolist() == [0.5, 1.5, -1.0, 0.0]
  tokens = [len(d.solution) for d in sampled[:3]]
  np.testing.assert_allclose(
    np.sum(batch.weights, axis=1),
    np.array([2.0, 0.0, 1.0, 0.0]) * [*tokens, 0] / sum(tokens),
    rtol=1e-6,
  )
  assert host.sft(sampled, rows=9).tokens.shape[0] == 9


def test_sft_sees_no_more_of_a_demonstration_than_it_is_given(gathered):
  """As of a guess: "ab:" of "ab:c" counts, and nothing of "abc"."""

  def weights(*texts):
    codes = [np.array([ord(c) for c in text], np.int32) for text in texts]
    prompt = np.array([9, 9], np.int32)
    given = [Demonstration(i, prompt, row) for i, row in enumerate(codes)]
    return _host(gathered).sft(given, rows=2).weights[:, :6]

  np.testing.assert_allclose(
    weights("ab:", ""), [[0, 0, 1 / 3, 1 / 3, 1 / 3, 0], [0] * 6]
  )
  np.testing.assert_allclose(
    weights("ab:c", "abc"),
    np.array([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]]) / 7,
  )


def test_memory_and_random_choices_outlive_a_host(gathered):
  host = _host(gathered, step=3)
  host.memory["waiting"] = [1, 2]
  assert _host(gathered).memory == {"waiting": [1, 2]}
  assert json.loads(json.dumps(gathered.host))["method"] == {"waiting": [1, 2]}
  sampled = host.random().random(3).tolist()
  assert host.random().random(3).tolist() == sampled
  assert _host(gathered, step=3).random().random(3).tolist() == sampled
  assert _host(gathered, step=4).random().random(3).tolist() != sampled
  gathered.host["method"].clear()


def test_without_demonstrations_a_batch_of_them_is_empty(directory):
  gathered = _gathered(directory, data__demonstrations_per_step=0)
  host = _host(gathered)
  assert host.demonstrations() == []
  assert host.demonstrations_at([]) == []
  assert host.groups(host.sample()).demonstrations == [None] * 3
  assert not np.asarray(host.sft([]).weights).any()


@pytest.mark.parametrize(
  ("changes", "count"),
  [
    ({}, 10),
    ({"data__demonstration_share": 0.5}, 5),
    ({"data__demonstrations_per_step": 0}, 0),
  ],
  ids=["all", "half", "none"],
)
def test_a_method_is_told_how_many_demonstrations_there_are(
  directory, monkeypatch, changes, count
):
  """Their ids are below it."""
  build, told = mixed.build, []

  def watched(options, setup):
    told.append(setup.demonstrations)
    return build(options, setup)

  monkeypatch.setattr(mixed, "build", watched)
  gathered = _gathered(directory, **changes)
  assert told[-1] == count  # before it, a plan for the memory
  assert len(gathered.streams.demonstrations or ()) == count


def test_each_update_of_a_step_has_its_share_of_both(directory):
  """In two passes over the rollouts, of two mini-batches each."""
  gathered = _gathered(
    directory, rl__updates_per_rollout=2, rl__passes_per_rollout=2
  )
  host = _host(gathered)
  assert (host.updates, host.parts) == (4, 2)
  batches = list(gathered.learner.method.batches(host))
  assert [len(batch.rl.tokens) for batch in batches] == [6] * 4
  assert [len(batch.sft.tokens) for batch in batches] == [1] * 4
  expected = [d.id for d in gathered.streams.demonstrations.take(0, 4)]
  assert [batch.sft.ids.tolist() for batch in batches] == [
    [i] for i in expected
  ]
  # Log-probs of the policy that sampled go with every mini-batch.
  for batch in batches:
    given = np.asarray(batch.rl.weights) > 0
    np.testing.assert_allclose(
      np.asarray(batch.rl.old_logprobs)[given],
      np.asarray(batch.rl.sampler_logprobs)[given],
      atol=1e-5,
    )


def test_what_is_logged_and_sampled_is_the_steps(gathered):
  host = _host(gathered)
  host.log({"mix/own": 2.0})
  answers = host.sample()
  assert host.logged["mix/own"] == 2.0
  assert host.logged["rl/unscorable"] == 3.0
  assert host.answers is answers
  assert host.text(gathered.streams.demonstrations.examples[0].prompt)
  assert host.steps == 4
