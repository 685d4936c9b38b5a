"""Questions by how often a policy was right: which are asked, and when."""

import json

import numpy as np
import pytest

from bilevel_jax import config, errors, types
from bilevel_jax.data import order, pass_rates
from bilevel_jax.training import sources
from tests import tiny_run


def _file(tmp_path, rates, **more):
  path = tmp_path / "rates.jsonl"
  rows = [{"id": name, "pass_rate": rate} | more for name, rate in rates]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.mark.parametrize(
  ("text", "found"),
  [("0.1..0.9", (0.1, 0.9)), ("0..1", (0, 1)), (".5 .. 0.5", (0.5, 0.5))],
)
def test_bounds(text, found):
  assert pass_rates.bounds(text) == found


@pytest.mark.parametrize(
  "text", ["", "0.5", "0.9..0.1", "-1..1", "0..2", "a..b"]
)
def test_other_bounds_are_refused(text):
  with pytest.raises(
    errors.ConfigError, match=r"^data.keep must be two shares"
  ):
    pass_rates.bounds(text)


@pytest.mark.parametrize(
  ("rows", "words"),
  [
    ([], "has no pass rate for the question 'a'"),
    ([("a", 0.5), ("a", 0.5)], "has the id 'a' of another row"),
    ([("a", 1.5)], "must have a pass rate of 0 to 1 for 'a', got 1.5"),
    ([("a", None)], "must have a pass rate of 0 to 1 for 'a', got None"),
    ([("a", True)], "must have a pass rate of 0 to 1 for 'a', got True"),
  ],
)
def test_a_file_without_usable_rates_is_refused(tmp_path, rows, words):
  question = types.Question("a", "Q", "", None, {})
  with pytest.raises(errors.ConfigError, match=words):
    pass_rates.of_file([question], _file(tmp_path, rows))


def test_rates_of_other_data_are_refused(tmp_path):
  question = types.Question("a", "Q", "", None, {})
  assert pass_rates.of_file([question], _file(tmp_path, [("a", 0.25)])) == [
    0.25
  ]
  other = _file(tmp_path, [("a", 0.25)], question="R")
  with pytest.raises(errors.ConfigError, match="is of other data"):
    pass_rates.of_file([question], other)


def test_ranks_order_each_epoch_and_leave_equal_ones_shuffled():
  ranks = np.array([2, 0, 1, 0, 1, 0, 2, 0], np.float64)
  shuffled = order.of_epochs(8, 0, 24, seed=3).reshape(3, 8)
  ordered = order.of_epochs(8, 0, 24, seed=3, ranks=ranks).reshape(3, 8)
  for plain, epoch in zip(shuffled, ordered, strict=True):
    assert (np.diff(ranks[epoch]) >= 0).all()
    for rank in (0, 1, 2):
      of_rank = lambda order, rank=rank: order[ranks[order] == rank].tolist()
      assert of_rank(epoch) == of_rank(plain)
  pieces = [
    order.of_epochs(8, n, 5, seed=3, ranks=ranks) for n in range(0, 20, 5)
  ]
  np.testing.assert_array_equal(np.concatenate(pieces), ordered.ravel()[:20])


class _Encoder:
  def prompt_tokens(self, question):
    return np.zeros(3, np.int32)

  def demonstrations(self, question):
    tokens = np.zeros(3, np.int32)
    return [types.Demonstration(0, tokens, tokens)]


def _streams(tmp_path, rates, **changes):
  c = tiny_run.settings(tmp_path)
  c.data.pass_rates = rates
  for name, value in changes.items():
    setattr(c.data, name, value)
  return sources.build_streams(config.parse(c), _Encoder())


def test_a_run_asks_what_is_within_the_bounds_in_the_order_wanted(tmp_path):
  names = [f"arithmetic-train-0-{n}" for n in range(10)]
  rates = _file(tmp_path, [(name, n / 10) for n, name in enumerate(names)])
  asked = lambda streams, count: [
    q.id for q in streams.prompts.take(0, count)[0]
  ]
  everything = _streams(tmp_path, rates)
  assert sorted(asked(everything, 10)) == sorted(names)
  some = _streams(tmp_path, rates, keep="0.3..0.5")
  assert sorted(asked(some, 3)) == names[3:6]
  assert len(some.demonstrations) == len(everything.demonstrations)
  easy = _streams(tmp_path, rates, keep="0.3..0.5", curriculum="easy_first")
  assert asked(easy, 6) == names[5:2:-1] * 2
  hard = _streams(tmp_path, rates, curriculum="hard_first")
  assert asked(hard, 10) == names
  assert len({s.checksum() for s in (everything, some, easy, hard)}) == 4
  with pytest.raises(errors.ConfigError, match="must leave a question"):
    _streams(tmp_path, rates, keep="0.95..1")


def test_an_order_without_rates_is_refused():
  c = config.default_config()
  c.model.preset = "qwen2.5-0.5b"
  c.data.questions.path = "x"
  c.data.curriculum = "easy_first"
  with pytest.raises(errors.ConfigError, match=r"data.curriculum need data\.p"):
    config.parse(c)
