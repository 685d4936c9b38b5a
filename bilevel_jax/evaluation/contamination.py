"""Questions of a benchmark that training data hold, too."""

import collections
import re
from collections.abc import Sequence
from typing import NamedTuple

from bilevel_jax import types

WORDS = 8  # in a row, that two texts seldom share by chance
SHARE = 0.5  # of a question's runs of words, from which on it was seen

_WORD = re.compile(r"\w+")


class Overlap(NamedTuple):
  """A question that training data hold."""

  question_id: str
  training_id: str  # of the example that shares most with it
  share: float  # of the question's runs of words that this example has


def find_overlaps(
  benchmark: Sequence[types.Question], training: Sequence[types.Question]
) -> list[Overlap]:
  """Returns the questions of which half the 8-word runs are in one example.

  Case, punctuation and white space do not count. A question of fewer words is
  one run, so it must be there as a whole.

  Args:
    training: what a model was trained on, questions and solutions.
  """
  examples = [
    _words(f"{example.question} {example.solution or ''}")
    for example in training
  ]
  found = []
  # Questions of one length of run, so that examples are indexed once for it.
  sizes = {}
  for question in benchmark:
    words = _words(question.question)
    size = min(WORDS, len(words))
    if size:
      sizes.setdefault(size, []).append((question, _runs(words, size)))
  for size, questions in sizes.items():
    wanted = set().union(*(runs for _, runs in questions))
    index: dict[tuple[str, ...], list[int]] = {}
    for number, words in enumerate(examples):
      for run in _runs(words, size) & wanted:
        index.setdefault(run, []).append(number)
    for question, runs in questions:
      counts = collections.Counter(
        number for run in runs for number in index.get(run, ())
      )
      for number, shared in counts.most_common(1):
        share = shared / len(runs)
        if share >= SHARE:
          found.append(Overlap(question.id, training[number].id, share))
  return found


def _words(text: str) -> list[str]:
  return _WORD.findall(text.lower())


def _runs(words: list[str], size: int) -> set[tuple[str, ...]]:
  return {
    tuple(words[start : start + size]) for start in range(len(words) - size + 1)
  }
