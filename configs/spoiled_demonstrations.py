"""Which demonstrations help? Most of them are spoiled, and no checker sees it.

    python -m bilevel_jax.main --config configs/spoiled_demonstrations.py
    python -m bilevel_jax.main --config configs/spoiled_demonstrations.py:slips

Regime B of experiments/studies/arithmetic.py: a policy of 0.1M parameters
(`bilevel_jax/assets/guessing_policy`) that was taught to answer without a step,
rewards for 2,000 questions, and 64 demonstrations. After the colon:

    guesses  (default) 48 of the 64 are right answers without a step
    slips    48 of the 64 have one wrong intermediate value, and what follows
             and the answer are those of the right solution
    clean    all 64 are worked solutions

BRIDGE learns a weight for each demonstration from what it does to the reward.
`--config.method.name=mixed` is one loss of SFT and RL, every demonstration with
weight 1; `--config.method.name=grpo` is RL alone. Another `--config.seed` has
other demonstrations, too.

Hardware: 2 CPU cores, no download. Cost: a minute. Expected, of 500 held-out
questions, with guesses and seeds 1 to 3: BRIDGE 46, 36, 45%, one loss 9, 15 and
7%, and 2% before (docs/results/spoiled_demonstrations.md).
"""

import importlib.resources

from bilevel_jax import errors
from experiments.studies import arithmetic

NAMES = {
  "guesses": {"guess_share": 0.75},
  "slips": {"slip_share": 0.75},
  "clean": {},
}
DEMONSTRATIONS = 64


def get_config(kind: str = "guesses"):
  """Returns the settings of the run on one kind of demonstrations.

  Raises:
    ConfigError: no kind has the name.
  """
  if kind not in NAMES:
    raise errors.ConfigError(
      "--config configs/spoiled_demonstrations.py:KIND takes "
      f"{', '.join(NAMES)}, got {kind!r}"
    )
  study = arithmetic.get_study()
  c = study.settings
  c.model.weights = str(
    importlib.resources.files("bilevel_jax") / "assets" / "guessing_policy"
  )
  c.method.name = "bridge"
  c.method.bridge.upper = "demonstrations"
  c.run_dir = (
    f"runs/spoiled_demonstrations/{kind}-"
    + c.method.get_ref("name")
    + "-"
    + c.get_ref("seed").to_str()
  )
  c.optimizer.base.learning_rate = 3e-4
  source = c.data.demonstrations
  source.task = "arithmetic"
  source.task_options = c.data.questions.task_options.to_dict() | NAMES[kind]
  # With this one, 48 of the 64 are spoiled for each of the seeds 1 to 5.
  source.seed = 38388
  source.count = DEMONSTRATIONS
  source.first = source.get_ref("count") * c.get_ref("seed")
  c.data.demonstration_share = 1.0
  c.data.demonstration_group = "kind"
  test = study.tests["same kind"]
  c.data.evaluation.first, c.data.evaluation.count = test.first, test.count
  c.evaluation.every = None
  c.logging.progress = True
  return c
