"""SVAMP's demonstrations, half of them spoiled; a checker passes them all."""

import collections
import random

from bilevel_jax import config
from bilevel_jax.data import corpora
from experiments.studies.parts.spoiled_arms import write

DEMONSTRATIONS = 64
GOOD = "equation"
_SPOILED = ("bare", "other")


def half_spoiled(settings, directory, earlier):
  """Gives a run its seed's demonstrations, of which half are spoiled.

  A quarter are the bare answer, a quarter the equation of another question
  that ends in the same number (where there is none, the bare answer).
  """
  _write(settings, directory, _spoiled(settings))


def good_alone(settings, directory, earlier):
  """Gives a run those of the same demonstrations that are not spoiled."""
  found = _spoiled(settings)
  _write(settings, directory, [q for q in found if q.meta["kind"] == GOOD])


def _write(settings, directory, questions):
  write(settings.data.demonstrations, questions, directory / "given.jsonl")
  settings.data.demonstrations.hub = None


def _spoiled(settings):
  every = corpora.load(config.parse(settings).data.questions)
  alike = collections.defaultdict(list)
  for question in every:
    alike[question.answer].append(question.solution)
  rng = random.Random(f"svamp/{settings.seed}")
  chosen = rng.sample(every, DEMONSTRATIONS)
  found = []
  for place, question in enumerate(chosen):
    kind = GOOD if place % 2 else _SPOILED[place // 2 % 2]
    solution = question.solution
    if kind == "other":
      others = [s for s in alike[question.answer] if s != solution]
      kind, solution = (
        ("other", rng.choice(others)) if others else ("bare", None)
      )
    if kind == "bare":
      solution = question.answer
    meta = {**question.meta, "kind": kind}
    found.append(question._replace(solution=solution, meta=meta))
  return found
