"""The ways of training that experiments/studies/spoiled.py compares."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from bilevel_jax import config, types
from bilevel_jax.data import corpora
from bilevel_jax.rewards import verifiers
from bilevel_jax.runs import records
from experiments.engine import plan

UPPER = "the upper level"
CONTROLS = "controls"
EQUAL_FLOPS = "equal FLOPs"
CHECKED = "mixed, right answers alone"
ORACLE = "mixed, good ones alone"

# Of all updates, forward and backward: what the main arms but the adapter's
# take for the study's sampled tokens, within a few percent.
UPDATE_FLOPS = 1.0e11
SFT_STEPS = 40  # of a run's first stage

_RATE = "optimizer.base.learning_rate"
_CLIP = "optimizer.base.clip_norm"
_DOSE = "data.paired_questions_share"


def _points(name, usual, *others):
  """Five points: three rates, and at one of them two values of another knob."""
  return (
    *({_RATE: rate, name: usual} for rate in (3e-4, 1e-4, 1e-3)),
    *({_RATE: 3e-4, name: value} for value in others),
  )


SEARCH = _points(_CLIP, 1.0, 0.3, 3.0)


def tables(seeds):
  """What the arms of each table have in common."""
  return {
    plan.MAIN: plan.Table(
      about="All with the same sampled tokens, and each with a search over "
      "five points: three learning rates, and with one of them two values of "
      "another knob, `clip_norm` or, of methods that learn from the questions' "
      "own demonstrations, `data.paired_questions_share`; of `chord` its peak, "
      "of `sft_then_rl` the first stage's share of the steps.",
      seeds=seeds,
    ),
    UPPER: plan.Table(
      about="Changes of BRIDGE, with the settings that its search chose.",
      seeds=seeds,
      reference="bridge, demonstrations",
    ),
    CONTROLS: plan.Table(
      about="`mixed` with weights that stay: the means over its run of what "
      "`bridge, demonstrations` learned on the same seed, each with its own "
      "demonstration, and with another at random.",
      seeds=seeds,
    ),
    EQUAL_FLOPS: plan.Table(
      about="A run ends when its updates have cost "
      f"{UPDATE_FLOPS:.0e} floating point operations, whatever it has sampled.",
      seeds=seeds,
      reference="mixed, equal FLOPs",
    ),
  }


def without_search(arm):
  """The arm at its first point."""
  return dataclasses.replace(arm, search=arm.search[:1], tuned_as=None)


def main_arms():
  """What every kind and share of spoiled demonstrations is tried with."""
  return {
    "mixed": _arm("mixed"),
    CHECKED: _arm("mixed", tuned_as="mixed", prepare=right_answers_alone),
    ORACLE: _arm("mixed", tuned_as="mixed", prepare=good_alone),
    "grpo": _arm("grpo"),
    "bridge, adapter": _arm("bridge", _ADAPTER, search=_both_rates(SEARCH)),
    "bridge, demonstrations": _arm("bridge", _DEMONSTRATIONS),
  }


def all_arms(steps):
  """Every way of training that is compared."""
  routed = {
    name: _arm(
      name, search=_points(_DOSE, 0.5, 0.25, 0.75), prepare=own_questions
    )
    for name in ("hpt", "luffy", "srft", "relift", "prefix_rft", "uft")
  }
  peak = "method.chord.peak"
  stages = "method.sft_then_rl.sft_share"
  weights = lambda prepare, **more: _arm(
    "mixed",
    tuned_as="mixed",
    prepare=prepare,
    after="bridge, demonstrations",
    table=CONTROLS,
    **more,
  )
  upper = lambda **more: _arm(
    "bridge",
    _DEMONSTRATIONS | {f"method.bridge.{n}": v for n, v in more.items()},
    tuned_as="bridge, demonstrations",
    table=UPPER,
  )
  adapter = lambda more: _arm(
    "bridge", _ADAPTER | more, tuned_as="bridge, adapter", table=UPPER
  )
  no_gain = {"method.bridge.gain_weight": 0.0}
  freeze = {
    "method.bridge.freeze_adapted": True,
    "adapter.targets": ("q", "k", "v", "o"),
  }
  flops = {
    "training.max_sampled_tokens": None,
    "training.max_update_flops": UPDATE_FLOPS,
  }
  equal = lambda name, method, changes: _arm(
    method, changes | flops, tuned_as=name, table=EQUAL_FLOPS
  )
  return {
    "base": plan.Arm(changes=None),
    **main_arms(),
    "sft_then_rl": _arm(
      "sft_then_rl", search=_points(stages, SFT_STEPS / steps, 0.15, 0.6)
    ),
    "mixed, dft": _arm("mixed", {"sft.token_weight": "probability"}),
    "chord": _arm("chord", search=_points(peak, 0.9, 0.5, 0.1)),
    "gta": _arm("gta"),
    "meta_gradient": _arm("meta_gradient"),
    **routed,
    "bridge, groups": _arm(
      "bridge", _DEMONSTRATIONS | {"method.bridge.per": ("group",)}
    ),
    "bridge, token_weight": _arm(
      "bridge", {"method.bridge.upper": "token_weight"}
    ),
    "bridge, swapped penalty": _arm(
      "bridge",
      _DEMONSTRATIONS | {"method.bridge.hypergradient": "penalty"},
    ),
    "its mean weights, fixed": weights(learned_weights),
    "its mean weights, permuted": weights(permuted_weights),
    "not averaged": upper(direction_decay=0.0),
    "no doubt": upper(weight_doubt=0.0),
    "features alone": upper(per=("features",)),
    "each alone": upper(per=("demonstration",)),
    "adapter, no gain": adapter(no_gain),
    "adapter, frozen": adapter(freeze),
    "adapter, frozen, no gain": adapter(freeze | no_gain),
    "mixed, equal FLOPs": equal("mixed", "mixed", {}),
    "bridge, adapter, equal FLOPs": equal(
      "bridge, adapter", "bridge", _ADAPTER
    ),
    "bridge, demonstrations, equal FLOPs": equal(
      "bridge, demonstrations", "bridge", _DEMONSTRATIONS
    ),
  }


_ADAPTER = {"method.bridge.upper": "adapter"}
_DEMONSTRATIONS = {"method.bridge.upper": "demonstrations"}


def _arm(method, changes=None, *, search=SEARCH, tuned_as=None, **more):
  return plan.Arm(
    changes={"method.name": method} | (changes or {}),
    search=({},) if tuned_as else search,
    tuned_as=tuned_as,
    **more,
  )


def _both_rates(points):
  adapter = "optimizer.adapter."
  return tuple(
    {
      **point,
      f"{adapter}learning_rate": point[_RATE],
      f"{adapter}clip_norm": point[_CLIP],
    }
    for point in points
  )


def demonstrations(settings) -> list[types.Question]:
  """What a run's demonstrations are made from."""
  return corpora.load(config.parse(settings).data.demonstrations)


def write(
  source, questions: Sequence[types.Question], path: pathlib.Path
) -> None:
  """Makes a source of questions read them from a file."""
  rows = [json.dumps(question._asdict()) for question in questions]
  records.write_atomically(path, "\n".join(rows) + "\n")
  source.task, source.path = None, str(path)
  source.first, source.count = 0, len(questions)


def good_alone(settings, directory, earlier):
  """Leaves the worked solutions alone."""
  kept = [q for q in demonstrations(settings) if q.meta["kind"] == "worked"]
  write(settings.data.demonstrations, kept, directory / "good.jsonl")


def right_answers_alone(settings, directory, earlier):
  """Leaves the solutions that the verifier of the rewards accepts."""
  kept = [
    question
    for question in demonstrations(settings)
    if verifiers.exact(question.solution, question) == 1
  ]
  write(settings.data.demonstrations, kept, directory / "right.jsonl")


def own_questions(settings, directory, earlier):
  """Asks the demonstrations' questions, too."""
  asked = corpora.load(config.parse(settings).data.questions)
  questions = [*asked, *demonstrations(settings)]
  write(settings.data.questions, questions, directory / "questions.jsonl")


def _given_weights(settings, directory, weights):
  path = directory / "weights.jsonl"
  records.write_atomically(path, "\n".join(map(json.dumps, weights)) + "\n")
  settings.data.demonstrations.weights = str(path)


def learned_weights(settings, directory, earlier):
  """Gives the demonstrations the mean weights that another run learned."""
  rows = records.read_records(earlier / "demonstrations.jsonl")
  _given_weights(settings, directory, [_weight(row) for row in rows])


def permuted_weights(settings, directory, earlier):
  """Gives them the same weights, each to a demonstration at random."""
  rows = records.read_records(earlier / "demonstrations.jsonl")
  order = np.random.default_rng(settings.seed).permutation(len(rows))
  permuted = [
    _weight(row) | {"weight": rows[other]["mean_weight"]}
    for row, other in zip(rows, order, strict=True)
  ]
  _given_weights(settings, directory, permuted)


def _weight(row):
  return {
    "id": row["id"],
    "question": row["question"],
    "weight": row["mean_weight"],
  }
