"""SFT alone on multi-step arithmetic: the baseline that must not be faulty.

    python -m bilevel_jax.main --config configs/methods/sft.py

Minus the log-likelihood of demonstrations, every token of the step's batch
counting the same, whatever the micro-batches. Published SFT baselines were not
always that: arXiv 2604.23747 traced a gap of several points to means of means
and to dropped micro-batches.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: the loss on demonstrations falls in each
step; no reward is looked at.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/sft"
  c.method.name = "sft"
  return c
