"""Another model's log-probs, against a forward pass of its own."""

import json

import numpy as np
import pytest

from bilevel_jax import config
from bilevel_jax.data import batches
from bilevel_jax.methods import terms
from bilevel_jax.models import sources as model_sources
from bilevel_jax.rollout import assemble, packing
from bilevel_jax.training import run, sharding
from bilevel_jax.types import Question
from tests import tiny_run


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp("expert")
  tiny_run.weights(directory)
  tiny_run.weights(directory / "other", seed=1)
  return directory


def _gathered(directory, method, expert=None):
  c = tiny_run.settings(directory, method)
  c.method.name = method
  c.method.expert.weights = expert and str(expert)
  return run.gather(config.parse(c), scorer=None)


def _logprobs(weights, scratch, pair, temperature):
  """Of a solution's tokens: one sequence, one row, no layout."""
  found = model_sources.load(str(weights), scratch)
  policy = tiny_run.make_policy()
  batch = assemble.token_batch([pair], lambda mask: mask)
  scored, _ = terms.token_logprobs(
    policy, found.base, None, batch, temperature=temperature, chunk=64
  )
  start = len(pair[0])
  return np.asarray(scored[0, start : start + len(pair[1])])


@pytest.mark.parametrize("named", [True, False])
def test_demonstrations_are_scored_once_by_what_wrote_them(
  directory, tmp_path, named
):
  """By the weights that are named, or by those that the run begins with."""
  weights = directory / "other" / "policy" if named else None
  story = _gathered(directory, "pear", weights)
  assert story.expert is None
  stream = story.streams.demonstrations
  writer = weights or directory / "policy"
  for i in (0, 3, 9):
    expected = _logprobs(writer, tmp_path, stream.pairs[i], 1.0)
    np.testing.assert_allclose(stream.logprobs[i], expected, atol=1e-5)
  drawn = stream.take(4, 3), stream.take_logprobs(4, 3)
  for pair, scored in zip(*drawn, strict=True):
    place = [p is pair for p in stream.pairs].index(True)
    np.testing.assert_array_equal(scored, stream.logprobs[place])


def test_a_teacher_scores_rollouts_at_their_temperature(directory, tmp_path):
  teacher = directory / "other" / "policy"
  c = tiny_run.settings(directory, "kdrl")
  c.method.name, c.method.expert.weights = "kdrl", str(teacher)
  c.rollout.temperature = 1.3
  story = run.gather(config.parse(c), scorer=None)
  pairs = story.streams.demonstrations.pairs[:3]
  batch = packing.pack(
    assemble.token_batch(pairs, lambda mask: mask), story.learner.packing
  )
  scored = story.expert.logprobs(sharding.place_batch(batch, story.mesh))
  for row, pair in zip(scored, pairs, strict=True):
    start = len(pair[0])
    np.testing.assert_allclose(
      row[start : start + len(pair[1])],
      _logprobs(teacher, tmp_path, pair, 1.3),
      atol=1e-5,
    )


def test_another_vocabulary_is_refused(directory, tmp_path):
  other = tiny_run.weights(tmp_path)
  file = other / "tokenizer.json"
  content = json.loads(file.read_text())
  vocabulary = content["model"]["vocab"]
  vocabulary["7"], vocabulary["8"] = vocabulary["8"], vocabulary["7"]
  file.write_text(json.dumps(content))
  with pytest.raises(config.ConfigError, match=r"'[78]' is token \d+ of ours"):
    _gathered(directory, "kdrl", other)


class _Letters:
  """Encodes each letter as its code."""

  def prompt_tokens(self, question):
    return np.frombuffer(question.question.encode(), np.uint8)

  def solution_tokens(self, question):
    return np.frombuffer(question.solution.encode(), np.uint8)


def _stream(logprobs, **changes):
  questions = [
    Question(str(i), "ab", "", "cdef", {} if row is None else {"logprobs": row})
    for i, row in enumerate(logprobs)
  ]
  return batches.Demonstrations(
    questions, _Letters(), **({"max_tokens": 6} | changes)
  )


def test_log_probs_that_come_with_demonstrations_are_taken():
  rows = [[-1.0, -2.0, -3.0, -4.0], [-5.0, -6.0, -7.0, -8.0]]
  stream = _stream(rows)
  np.testing.assert_array_equal(stream.logprobs, rows)
  cut = _stream(rows, max_tokens=5, overlong="truncate")
  np.testing.assert_array_equal(cut.logprobs, np.array(rows)[:, :3])
  batch = assemble.token_batch(
    cut.pairs, lambda mask: mask, logprobs=cut.logprobs
  )
  np.testing.assert_array_equal(
    batch.expert_logprobs[batch.weights > 0].reshape(2, 3),
    np.array(rows)[:, :3],
  )
  assert _stream([rows[0], None]).logprobs is None
  with pytest.raises(config.ConfigError, match=r"its 4 tokens.*got 3"):
    _stream([[-1.0, -2.0, -3.0]])
