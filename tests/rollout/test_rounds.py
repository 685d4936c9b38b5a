"""Rounds of sampling: the same bits as one round, and what they decide on."""

import functools

import jax
import numpy as np
import pytest

from bilevel_jax import types
from bilevel_jax.rollout import answers, engine, rounds
from tests import tabular

VOCABULARY = 6
SAMPLES = 4
SOLUTIONS = [np.array([2, 3, 4, 5, 1, 0], np.int32), None, np.array([5, 0])]
QUESTIONS = [
  types.Question(name, name, "", None, {}) for name in ("first", "none", "last")
]


class _Solutions:
  def of(self, questions):
    known = {
      question.id: types.Demonstration(number, np.zeros(1, np.int32), solution)
      for number, (question, solution) in enumerate(
        zip(QUESTIONS, SOLUTIONS, strict=True)
      )
      if solution is not None
    }
    return [known.get(question.id) for question in questions]


def _requests(**changes):
  prompts = [(1, 2), (3,), (0, 4, 5, 1)]
  return types.Requests(
    prompts=[np.array(prompt, np.int32) for prompt in prompts],
    **{
      "prompt_ids": np.arange(3) + 10,
      "samples_per_prompt": SAMPLES,
      "max_new_tokens": 8,
      "eos_ids": (0,),
      "sampling": types.Sampling(),
      "key": jax.random.key(0),
      **changes,
    },
  )


@functools.cache
def _table():
  policy = tabular.policy(VOCABULARY)
  return policy, jax.device_get(policy.init(jax.random.key(7)))


def _ask(questions, requests):
  """Draws, and rewards a completion by the share of fives in it."""
  rollout = engine.generate(*_table(), requests, segment=8)
  rewards = (rollout.tokens == 5).mean(axis=1).astype(np.float32)
  rows = len(rewards)
  return answers.Answers(
    questions=[questions[i] for i in rollout.prompt_index],
    completions=[str(row) for row in rollout.tokens],
    rollout=rollout,
    scores=types.Scores(
      rewards=rewards, scored=np.arange(rows) % 5 > 0, correct=rewards > 0.2
    ),
    rollout_s=1.0,
    reward_s=2.0,
  )


def _guided(guide, requests=None, **changes):
  arguments = {"solutions": _Solutions(), "step": 3} | changes
  return rounds.guided(
    _ask, QUESTIONS, requests or _requests(), guide, **arguments
  )


def test_rounds_without_prefixes_draw_what_one_round_does():
  sizes = iter([2, 1, 3])  # the last is cut to what is left
  guide = lambda progress: np.zeros((3, next(sizes)), int)
  parted, whole = _guided(guide), _ask(QUESTIONS, _requests())
  for name in ("tokens", "lengths", "logprobs", "finish_reasons"):
    np.testing.assert_array_equal(
      getattr(parted.rollout, name), getattr(whole.rollout, name)
    )
  np.testing.assert_array_equal(parted.scores.rewards, whole.scores.rewards)
  assert parted.completions == whole.completions
  assert parted.questions == whole.questions
  assert (parted.rollout_s, parted.reward_s) == (3.0, 6.0)


def test_a_round_knows_the_rewards_before_it_and_gives_what_it_decides():
  seen = []

  def guide(progress):
    seen.append(progress)
    # Of each demonstration, half in the second round, all in the third.
    share = [0.0, 0.5, 1.0][len(seen) - 1]
    given = np.floor(share * progress.solutions).astype(int)
    return np.repeat(given[:, None], [2, 1, 1][len(seen) - 1], axis=1)

  answered = _guided(guide)
  rollout, scores = answered.rollout, answered.scores
  np.testing.assert_array_equal(
    rollout.prefix_lengths.reshape(3, 4), [[0, 0, 3, 6], [0] * 4, [0, 0, 1, 2]]
  )
  for row, (question, sample) in enumerate(np.ndindex(3, SAMPLES)):
    given = rollout.prefix_lengths[row]
    if given:
      np.testing.assert_array_equal(
        rollout.tokens[row, :given], SOLUTIONS[question][:given]
      )
    assert answered.questions[row] is QUESTIONS[question]
    assert rollout.prompt_index[row] == question
    del sample
  # A whole demonstration is a completion, with nothing sampled.
  assert rollout.lengths[3] == 6
  for number, progress in enumerate(seen):
    known = [0, 2, 3][number]
    assert (progress.step, progress.samples) == (3, SAMPLES)
    np.testing.assert_array_equal(progress.solutions, [6, 0, 2])
    np.testing.assert_array_equal(
      progress.rewards, scores.rewards.reshape(3, 4)[:, :known]
    )
    np.testing.assert_array_equal(
      progress.scored, scores.scored.reshape(3, 4)[:, :known]
    )
  assert len({progress.seed for progress in seen}) == 3


def test_no_demonstrations_guide_nothing():
  guide = lambda progress: np.repeat(progress.solutions[:, None], 4, axis=1)
  answered = _guided(guide, solutions=None)
  plain = _ask(QUESTIONS, _requests())
  np.testing.assert_array_equal(answered.rollout.tokens, plain.rollout.tokens)


def test_rounds_share_a_total_budget():
  requests = _requests(eos_ids=(), total_tokens=40)
  guide = lambda progress: np.zeros((3, 2), int)
  assert 30 < _guided(guide, requests).rollout.lengths.sum() <= 40


def _groups(rewards, first, scored=None):
  """Answers with these rewards, [P, G], to questions `first` and after."""
  rewards = np.array(rewards, np.float32)
  questions, samples = rewards.shape
  ids = np.arange(first, first + questions)
  rows = np.repeat(ids, samples) * 10 + np.tile(np.arange(samples), questions)
  return answers.Answers(
    questions=[types.Question(str(row), "", "", None, {}) for row in rows],
    completions=list(map(str, rows)),
    rollout=types.Rollout(
      requests=_requests(
        prompt_ids=ids.astype(np.uint32),
        samples_per_prompt=samples,
      ),
      tokens=rows[:, None],
      lengths=np.ones(len(rows), np.int32),
      logprobs=np.zeros((len(rows), 1), np.float32),
      finish_reasons=np.zeros(len(rows), np.int8),
    ),
    scores=types.Scores(
      rewards=rewards.ravel(),
      scored=np.ones(len(rows), bool) if scored is None else scored,
      correct=rewards.ravel() > 0,
    ),
    rollout_s=1.0,
    reward_s=1.0,
  )


@pytest.mark.parametrize(
  ("most", "rounds_taken", "kept", "with_signal"),
  [
    (1, 1, [0, 1, 2], [0, 1, 0]),
    (2, 2, [0, 1, 4], [0, 1, 1]),  # one is still wanting: the first flat one
    (9, 3, [1, 4, 7], [1, 1, 1]),  # enough: the surplus is not learned from
  ],
)
def test_questions_are_added_until_enough_have_signal(
  most, rounds_taken, kept, with_signal
):
  flat, mixed = [1, 1], [1, 0]
  sampled = [[flat, mixed, flat], [flat, mixed, flat], [flat, mixed, mixed]]
  asked = (_groups(part, 3 * number) for number, part in enumerate(sampled))
  everything, answered, tells = rounds.dynamic_sampling(
    lambda: next(asked), rounds=most
  )
  assert len(everything.rollout.requests.prompts) == 3 * rounds_taken
  assert everything.rollout_s == rounds_taken
  assert answered.rollout.requests.prompt_ids.tolist() == kept
  rows = [10 * question + sample for question in kept for sample in range(2)]
  assert answered.completions == list(map(str, rows))
  assert answered.rollout.tokens[:, 0].tolist() == rows
  np.testing.assert_array_equal(tells, np.array(with_signal, bool))


def test_a_group_has_signal_by_what_was_scored():
  scored = np.array([1, 0, 1, 1, 0, 1], bool)
  groups = _groups([[1, 0], [0, 1], [0, -1]], 0, scored=scored)
  np.testing.assert_array_equal(
    answers.has_signal(groups), [False, True, False]
  )
