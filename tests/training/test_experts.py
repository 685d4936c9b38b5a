"""Another model's log-probs, against a forward pass of its own."""

import json
from unittest import mock

import numpy as np
import pytest

from bilevel_jax import config, errors
from bilevel_jax import weights as weights_lib
from bilevel_jax.data import batches
from bilevel_jax.methods import terms
from bilevel_jax.rollout import assemble, packing
from bilevel_jax.training import host as host_lib
from bilevel_jax.training import run, sharding
from bilevel_jax.types import Demonstration, Question
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
  return run.gather(config.parse(c), scorer=mock.Mock())


def _logprobs(weights, scratch, demonstration, temperature):
  """Of a solution's tokens: one sequence, one row, not packed."""
  pair = demonstration.prompt, demonstration.solution
  base = weights_lib.open(str(weights)).read(None)
  policy = tiny_run.make_policy()
  batch = assemble.token_batch([pair], lambda mask: mask)
  scored, _ = terms.token_logprobs(
    policy, base, None, batch, temperature=temperature, chunk=64
  )
  start = len(pair[0])
  return np.asarray(scored[0, start : start + len(pair[1])])


@pytest.mark.parametrize("named", [True, False])
def test_demonstrations_are_scored_once_by_what_wrote_them(
  directory, tmp_path, named
):
  """By the weights that are named, or by those that the run begins with."""
  weights = directory / "other" / "policy" if named else None
  gathered = _gathered(directory, "pear", weights)
  assert gathered.expert is None
  stream = gathered.streams.demonstrations
  writer = weights or directory / "policy"
  for one in [stream.examples[i] for i in (0, 3, 9)]:
    expected = _logprobs(writer, tmp_path, one, 1.0)
    np.testing.assert_allclose(one.logprobs, expected, atol=1e-5)
  for sampled in stream.take(4, 3):
    assert sampled is stream.examples[sampled.id]
  host = host_lib.Host(gathered, 0, gathered.learner.method.plan(0, {}))
  sampled = host.demonstrations()
  batch = host.sft(sampled)
  for row, one in enumerate(sampled):
    first, last = len(one.prompt), len(one.prompt) + len(one.solution)
    np.testing.assert_array_equal(
      batch.expert_logprobs[row, first:last], one.logprobs
    )
    assert int(batch.ids[row]) == one.id


def test_a_teacher_scores_rollouts_at_their_temperature(directory, tmp_path):
  teacher = directory / "other" / "policy"
  c = tiny_run.settings(directory, "kdrl")
  c.method.name, c.method.expert.weights = "kdrl", str(teacher)
  c.rollout.temperature = 1.3
  gathered = run.gather(config.parse(c), scorer=mock.Mock())
  examples = gathered.streams.demonstrations.examples[:3]
  batch = packing.pack(
    assemble.demonstration_batch(examples, lambda mask: mask),
    gathered.learner.packing,
  )
  scored = gathered.expert(sharding.place_batch(batch, gathered.mesh))
  for row, one in zip(scored, examples, strict=True):
    start = len(one.prompt)
    np.testing.assert_allclose(
      row[start : start + len(one.solution)],
      _logprobs(teacher, tmp_path, one, 1.3),
      atol=1e-5,
    )


def test_another_vocabulary_is_refused(directory, tmp_path):
  other = tiny_run.weights(tmp_path)
  file = other / "tokenizer.json"
  content = json.loads(file.read_text())
  vocabulary = content["model"]["vocab"]
  vocabulary["7"], vocabulary["8"] = vocabulary["8"], vocabulary["7"]
  file.write_text(json.dumps(content))
  with pytest.raises(errors.ConfigError, match=r"'[78]' is token \d+ of ours"):
    _gathered(directory, "kdrl", other)


class _Letters:
  """Encodes each letter as its code."""

  def prompt_tokens(self, question):
    return np.frombuffer(question.question.encode(), np.uint8)

  def demonstrations(self, question):
    solution = np.frombuffer(question.solution.encode(), np.uint8)
    return [Demonstration(0, self.prompt_tokens(question), solution)]


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
  told = lambda stream: [d.logprobs for d in stream.examples]
  np.testing.assert_array_equal(told(stream), rows)
  cut = _stream(rows, max_tokens=5, overlong="truncate")
  np.testing.assert_array_equal(told(cut), np.array(rows)[:, :3])
  batch = assemble.demonstration_batch(
    cut.examples, lambda mask: mask, with_logprobs=True
  )
  np.testing.assert_array_equal(
    batch.expert_logprobs[batch.weights > 0].reshape(2, 3),
    np.array(rows)[:, :3],
  )
  assert told(_stream([rows[0], None])) == [None, None]
  with pytest.raises(errors.ConfigError, match=r"its 4 tokens.*got 3"):
    _stream([[-1.0, -2.0, -3.0]])
