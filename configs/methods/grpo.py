"""GRPO alone on multi-step arithmetic: RL from the base (arXiv 2402.03300).

    python -m bilevel_jax.main --config configs/methods/grpo.py

Demonstrations are not looked at. `rl.*` chooses the RL objective of this and
of every other method: docs/methods.md has the settings of each known one.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: reward rises where some samples of a group
are right and some wrong.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/grpo"
  c.method.name = "grpo"
  return c
