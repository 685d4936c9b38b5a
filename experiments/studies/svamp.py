"""Does cooperation pay with real weights? SmolLM2-135M-Instruct on SVAMP.

    python tools/fetch_smollm2.py --out smollm2
    python experiments/study.py experiments/studies/svamp.py
    python experiments/study.py experiments/studies/svamp.py --quick

The settings are those of configs/smollm2_svamp.py with larger batches. SVAMP
comes from the hub; with SVAMP=FILE in the environment a local copy is read,
JSONL with the fields question, answer and solution.

Hardware: one GPU. Cost: 28 runs of about 45 steps. --quick, two steps of two
methods, shows that it works: five minutes on two CPU cores.

Expected: nothing is known; it has been run with --quick alone.
"""

import os

from bilevel_jax import config
from configs import smollm2_svamp
from experiments.engine import plan

LEARNING_RATES = (3e-5, 1e-4)
SAMPLED_TOKENS = 60_000
DEMONSTRATIONS = 64
STEPS = 50  # of SFT, about as many as the budget of tokens allows the others


def get_study(quick: bool = False) -> plan.Study:
  """Returns the study, or a short form of it that shows that it works."""
  c = _settings()
  rates = (3e-5,) if quick else LEARNING_RATES
  if quick:
    c.steps = 2
    c.training.max_sampled_tokens = None
    c.data.evaluation.count = 8
    c.data.prompts_per_step = 2
    c.rollout.samples_per_prompt = 4
  search = [
    {
      "optimizer.base.learning_rate": rate,
      "optimizer.adapter.learning_rate": rate,
    }
    for rate in rates
  ]
  arm = lambda name, **more: plan.Arm(
    changes={"method.name": name, **more}, search=search
  )
  arms = {
    "base": plan.Arm(changes=None),
    "sft": arm("sft", steps=min(STEPS, c.steps)),
    "grpo": arm("grpo"),
    "sft_then_rl": plan.Arm(
      changes={
        "method.name": "sft_then_rl",
        "method.sft_then_rl.sft_share": STEPS / c.steps,
      },
      search=search,
      takes={
        "method.sft_then_rl.sft_learning_rate": (
          "sft",
          "optimizer.base.learning_rate",
        )
      },
    ),
    "mixed": arm("mixed"),
    "bridge": arm("bridge"),
    "bridge, no gain": plan.Arm(
      changes={"method.name": "bridge", "method.bridge.gain_weight": 0.0},
      tuned_as="bridge",
    ),
  }
  if quick:
    arms = {name: arms[name] for name in ("base", "mixed", "bridge")}
  return plan.Study(
    name="svamp",
    about="SmolLM2-135M-Instruct, quantised to four bits and read back, learns "
    "to answer SVAMP's questions with one equation. Rewards (1 for the right "
    "number) are given for 700 questions, equations for "
    f"{DEMONSTRATIONS} of them; 100 of the other 300 are for validation, 200 "
    "for the test.",
    settings=c,
    regimes={
      "svamp": plan.Regime(
        about="rewards are sparse: of the instructed prompt the base gets "
        "hardly a question right",
        arms=arms,
      )
    },
    tests={"held out": _questions(first=800, count=10 if quick else 200)},
    test_tokens=c.rollout.max_new_tokens,
    verifier="number",
    tables={
      plan.MAIN: plan.Table(
        about=f"The same sampled tokens; `sft` samples none and has {STEPS} "
        "steps, as has the first stage of `sft_then_rl`.",
        seeds=(1,) if quick else (1, 2, 3),
      )
    },
    tuning_seed=0,
    reference="bridge",
  )


def _settings():
  """What all runs of the study share."""
  c = smollm2_svamp.get_config()
  c.steps = 2 * STEPS
  c.training.max_sampled_tokens = SAMPLED_TOKENS
  for section, source in (
    (c.data.questions, _questions(first=0, count=700)),
    (c.data.evaluation, _questions(first=700, count=100)),
  ):
    for name in ("path", "hub", "fields", "first", "count"):
      section[name] = getattr(source, name)
  c.data.demonstration_share = DEMONSTRATIONS / 700
  c.data.prompts_per_step = 8
  c.rollout.samples_per_prompt = 8
  c.training.micro_batch_tokens = 8192
  c.evaluation.every = 10
  c.checkpoints.every = None
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
