"""Which questions training data hold, on hand-made texts."""

import json

import pytest

from bilevel_jax import types
from bilevel_jax.evaluation import benchmark_table, contamination
from tests import public_data

LONG = "Ann has three apples and buys four more pears at the market today"


def _question(text, solution=None, id="t"):
  return types.Question(id, text, "", solution, {})


@pytest.mark.parametrize(
  ("training", "share"),
  [
    (LONG, 1),
    (f"once, {LONG.upper()}! why?", 1),
    ("ann has three apples and buys four more pears at the fair today", 2 / 3),
    ("three apples and buys four more pears at a market today", None),
    ("apples and buys four more pears at the market", None),
    ("three apples and buys four more pears at the market", 0.5),
    ("Ann has three apples, and buys four plums at the market today", None),
    ("Ann has three apples", None),
    ("", None),
  ],
)
def test_half_of_the_runs_of_eight_words_make_an_overlap(training, share):
  found = contamination.find_overlaps(
    [_question(LONG, id="q")], [_question(training)]
  )
  assert found == ([] if share is None else [("q", "t", pytest.approx(share))])


def test_solutions_count_and_the_closest_example_is_named():
  near = "three apples and buys four more pears at the market today"
  training = [
    _question(near, id="near"),
    _question("?", LONG, id="same"),
  ]
  (found,) = contamination.find_overlaps([_question(LONG)], training)
  assert (found.training_id, found.share) == ("same", 1)


def test_a_short_question_must_be_there_as_a_whole():
  training = [_question("compute 1 + 2 now"), _question("what is 3?", id="u")]
  assert (
    contamination.find_overlaps([_question("1+2")], training)[0].training_id
    == "t"
  )
  assert not contamination.find_overlaps([_question("1+3")], training)
  assert not contamination.find_overlaps([_question("?!")], training)


@pytest.mark.parametrize(
  ("name", "count"),
  [
    ("math500", 500),
    ("minerva_math", 272),
    ("olympiadbench", 675),
    ("aime24", 30),
    ("aime25", 30),
    ("amc23", 40),
    ("gsm8k", 1319),
  ],
)
def test_local_copies_have_the_published_number_of_questions(name, count):
  folder = public_data.path("eval")
  questions = benchmark_table.load_questions(name, folder)
  assert len(questions) == count
  assert len({q.id for q in questions}) == len(questions)
  assert json.dumps([q.meta for q in questions])
