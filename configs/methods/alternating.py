"""Steps of RL and steps of SFT in turns, on multi-step arithmetic.

    python -m bilevel_jax.main --config configs/methods/alternating.py

Ours: the two have optimisers of their own, with their own states and learning
rates, since moments of one loss misguide the other.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: metrics of SFT and of RL appear in every
other step.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/alternating"
  c.method.name = "alternating"
  return c
