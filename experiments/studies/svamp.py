"""When does the second level pay with real weights? SmolLM2-135M on SVAMP.

    python tools/fetch_smollm2.py --out smollm2
    python experiments/study.py experiments/studies/svamp.py
    python experiments/study.py experiments/studies/svamp.py --quick

The settings are those of configs/smollm2_svamp.py with larger batches and
shorter answers. Half of 64 demonstrations are spoiled: bare answers, and
equations of other questions that end in the same number, so that a checker of
answers passes them all. SVAMP comes from the hub; with SVAMP=FILE in the
environment a local copy is read, JSONL with the fields question, answer and
solution.

Hardware: CPU or one GPU. Cost: 19 runs of 24 steps. --quick, two steps of three
ways of training, shows that it works: five minutes on two CPU cores.

Expected: nothing is known; it has been run with --quick alone.
"""

import os

from bilevel_jax import config
from configs import smollm2_svamp
from experiments.engine import pinned, plan
from experiments.studies.parts import svamp_data

STEPS = 24


def get_study(quick: bool = False) -> plan.Study:
  """Returns the study, or a short form of it that shows that it works."""
  c = _settings()
  if quick:
    c.steps = 2
    c.data.evaluation.count = 8
    c.data.prompts_per_step = 2
    c.rollout.samples_per_prompt = 4
  weights = {
    "method.name": "bridge",
    "method.bridge.upper": "demonstrations",
  }
  arm = lambda changes, prepare=svamp_data.half_spoiled: plan.Arm(
    changes=changes, prepare=prepare
  )
  arms = {
    "base": plan.Arm(changes=None),
    "mixed": arm({"method.name": "mixed"}),
    "mixed, good ones alone": arm(
      {"method.name": "mixed"}, svamp_data.good_alone
    ),
    "bridge, demonstrations": arm(weights),
    "bridge, groups": arm(weights | {"method.bridge.per": ("group",)}),
    "sft": arm({"method.name": "sft"}),
    "grpo": arm({"method.name": "grpo"}),
  }
  if quick:
    few = ("base", "mixed", "bridge, demonstrations")
    arms = {name: arms[name] for name in few}
  return plan.Study(
    name="svamp",
    about="SmolLM2-135M-Instruct, quantised to four bits and read back, learns "
    "to answer SVAMP's questions with one equation. Rewards (1 for the right "
    "number) are given for 700 questions, and demonstrations for "
    f"{svamp_data.DEMONSTRATIONS} of them, other ones for each seed; 100 of "
    "the other 300 are for validation, 200 for the test. Nothing was searched. "
    "A filter of right answers would leave every demonstration: `mixed` is it.",
    settings=c,
    regimes={
      "svamp": plan.Regime(
        about="rewards are sparse, and half of the demonstrations are spoiled",
        arms=arms,
      )
    },
    tests={"held out": _questions(first=800, count=10 if quick else 200)},
    test_tokens=c.rollout.max_new_tokens,
    verifier="number",
    tables={
      plan.MAIN: plan.Table(
        about=f"{STEPS} steps each, with one learning rate.",
        seeds=(1,) if quick else (1, 2, 3),
      )
    },
    tuning_seed=0,
    reference="mixed",
    good=svamp_data.GOOD,
    oracle="mixed, good ones alone",
  )


def _settings():
  """What all runs of the study share."""
  c = pinned.settings(smollm2_svamp.get_config())
  c.steps = STEPS
  for section, source in (
    (c.data.questions, _questions(first=0, count=700)),
    (c.data.evaluation, _questions(first=700, count=100)),
  ):
    for name in ("path", "hub", "fields", "first", "count"):
      section[name] = getattr(source, name)
  c.data.demonstration_group = "kind"
  c.data.prompts_per_step = 8
  c.rollout.samples_per_prompt = 8
  c.rollout.max_new_tokens = 20
  c.training.micro_batch_tokens = 8192
  c.optimizer.base.learning_rate = 5e-5
  c.evaluation.every = None
  c.checkpoints.every = 5  # a killed run goes on from there
  c.logging.progress = False
  return c


def _questions(first, count):
  path = os.environ.get("SVAMP")
  if path is not None:
    return config.Source(path=path, first=first, count=count)
  like = smollm2_svamp.get_config().data.questions
  return config.Source(
    hub=like.hub,
    split=like.split,
    fields=like.fields.to_dict(),
    first=first,
    count=count,
  )
