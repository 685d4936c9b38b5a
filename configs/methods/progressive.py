"""From imitation to RL on multi-step arithmetic: a recipe of arXiv 2507.07562.

    python -m bilevel_jax.main --config configs/methods/progressive.py

A recipe of the Synergy study, whose definition could not be read; ours: samples
begin with all of the worked solution at first, and linearly less, until after
half of the steps (method.progressive.guided_share) there is nothing but RL.
What they begin with is learned by SFT, what they draw by RL. Questions without
a solution (three quarters here) are RL throughout.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: rollout/given_tokens falls to 0 after 20 of
the 40 steps.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/progressive"
  c.method.name = "progressive"
  return c
