"""Does cooperation pay? Chains of sums, solved step by step by a small policy.

    python experiments/study.py experiments/studies/arithmetic.py
    python experiments/study.py experiments/studies/arithmetic.py --quick

Hardware: CPU. Cost: a run takes 10 to 40 seconds of one core, with four times
the rollouts two minutes, with hypergradients of second order a few minutes, the
whole study about seven hours; --quick (two seeds of five methods on regime B,
shorter runs) under ten minutes on two.

Expected: docs/results/arithmetic.md has what was found.
"""

import dataclasses
import json
import pathlib
import zlib

from bilevel_jax import config
from bilevel_jax.rewards import verifiers
from experiments.engine import findings, pinned, plan
from experiments.studies.parts import arithmetic_arms as arms

DEMONSTRATIONS = 16


def get_study(quick: bool = False) -> plan.Study:
  """Returns the study, or a short form of it that shows that it works."""
  settings = _settings()
  searched = arms.points(arms.LEARNING_RATES)
  if quick:
    settings.training.max_sampled_tokens = 20_000
    searched = arms.points((3e-4,))  # no search
  methods = arms.methods(settings.steps, searched)
  regimes = {
    "B": plan.Regime(
      about="rewards too sparse: the base was taught to answer without a step, "
      "and seldom does otherwise",
      stages=("reasoner", "seldom"),
      arms=methods
      | arms.equal_flops()
      | arms.why(settings.steps)
      | arms.four_times()
      | arms.ablations(settings.steps),
    ),
    "A": plan.Regime(
      about="exploration finds the skill: the base was taught to answer "
      "without a step 60% of the time, and writes its steps in the rest",
      stages=("reasoner", "often"),
      arms={n: m for n, m in methods.items() if n not in arms.SECOND_ORDER},
    ),
  }
  if quick:
    few = ("base", "sft", "grpo", "mixed", "bridge")
    short = {name: methods[name] for name in few}
    regimes = {"B": dataclasses.replace(regimes["B"], arms=short)}
  return plan.Study(
    name="arithmetic",
    about="A character-level Llama of 0.1M parameters learns chains of one to "
    "four sums of two-digit numbers by 850 steps of SFT, and then to give bare "
    "guesses in place of solutions (95% or 60% of the time), so that it is a "
    "weak reasoner that could do better: `reasoner` in the tables is what it "
    "was before it guessed. Rewards (1 for a right answer) are given for 2,000 "
    f"questions of two and three operations, worked solutions for "
    f"{DEMONSTRATIONS} of them. Tests: 500 other questions of that kind, and "
    "500 of four operations, a kind that the first stage has seen and that "
    "neither rewards nor demonstrations ever show.",
    settings=settings,
    stages=_stages(),
    regimes=regimes,
    tests={
      "same kind": _questions((2, 3), "test", 200 if quick else 500, first=200),
      "harder": _questions((4, 4), "test", 200 if quick else 500),
    },
    test_tokens=56,
    verifier="exact",
    tables=arms.tables(quick),
    tuning_seed=0,
    reference="bridge",
    findings="" if quick else _findings(),
  )


def _findings():
  """What was found, and what the first design of this study had found."""
  here = pathlib.Path(__file__)
  first = here.parents[2] / "docs/results/arithmetic_first_design.json"
  return findings.fill(
    here.with_suffix(".md").read_text("utf-8"),
    json.loads(first.read_text("utf-8")),
    "first",
  )


def flipped(completion, question) -> float:
  """Returns the exact verifier's reward, or its opposite for one in five."""
  reward = verifiers.exact(completion, question)
  lot = zlib.crc32(f"{question.question}/{completion}".encode()) % 5
  return 1.0 - reward if lot == 0 else reward


def _settings():
  """What all runs of the study share."""
  c = pinned.settings()
  c.steps = 120
  c.training.max_sampled_tokens = arms.SAMPLED_TOKENS
  c.model.weights = "set by the study"
  c.model.remat = "none"
  c.training.packing = "off"
  c.training.row_tokens = 48  # no sequence is longer: one program each
  c.adapter.rank = 8
  c.adapter.alpha = 8.0
  c.tokenizer.prompt = "{question}"
  _fill(c.data.questions, _questions((2, 3), "train", 2000))
  _fill(c.data.evaluation, _questions((2, 3), "test", 200))
  c.data.demonstration_share = DEMONSTRATIONS / 2000
  c.data.prompts_per_step = arms.PROMPTS
  c.data.demonstrations_per_step = 12
  c.data.max_prompt_tokens = 14
  c.data.max_demonstration_tokens = 48
  c.reward.verifiers = ("exact",)
  c.reward.workers = 1
  c.rollout.samples_per_prompt = 8
  c.rollout.max_new_tokens = 36
  c.optimizer.base.warmup_steps = 5
  c.evaluation.every = 20
  c.checkpoints.every = None
  c.checkpoints.keep_best = 0
  c.checkpoints.keep_last = 1
  c.logging.progress = False
  return c


def _stages():
  """Runs that make the two policies: a reasoner, then one that guesses."""
  reasoner = _settings()
  reasoner.method.name = "sft"
  reasoner.model.weights = None
  reasoner.model.preset = "mini-arithmetic"
  reasoner.steps = 850
  reasoner.training.max_sampled_tokens = None  # it samples none
  reasoner.training.row_tokens = 64  # up to four operations
  reasoner.data.max_prompt_tokens = 20
  reasoner.data.max_demonstration_tokens = 64
  reasoner.rollout.max_new_tokens = 44
  reasoner.seed = 1
  reasoner.data.demonstration_share = 1.0
  reasoner.data.demonstrations_per_step = 64
  _fill(reasoner.data.questions, _questions((1, 4), "train", 20_000, seed=1))
  _fill(reasoner.data.evaluation, _questions((3, 4), "test", 200))
  reasoner.optimizer.base.learning_rate = 5e-3
  reasoner.optimizer.base.schedule = "cosine"
  reasoner.optimizer.base.warmup_steps = 30
  reasoner.optimizer.base.end_share = 0.2
  reasoner.evaluation.every = None
  reasoner.checkpoints.every = 100
  stages = {"reasoner": reasoner}
  for name, share in (("often", 0.6), ("seldom", 0.95)):
    guesser = reasoner.copy_and_resolve_references()
    guesser.steps = 60
    guesser.data.questions.task_options.guess_share = share
    guesser.optimizer.base.learning_rate = 1e-3
    guesser.checkpoints.every = None
    stages[name] = guesser
  return stages


def _questions(steps, split, count, first=0, seed=2):
  return config.Source(
    task="arithmetic",
    task_options={
      "steps": list(steps),
      "operators": "+-",
      "max_operand": 50,
      "max_value": 99,
    },
    split=split,
    first=first,
    count=count,
    seed=seed,
  )


def _fill(section, source):
  for name in ("task", "task_options", "split", "first", "count", "seed"):
    section[name] = getattr(source, name)
