"""A learned mixing coefficient, on multi-step arithmetic.

    python -m bilevel_jax.main --config configs/methods/meta_gradient.py

(1 - mu) L_RL + mu L_SFT; mu follows the reward that the last step's mixing
earned, measured on the next step's rollouts. Inspired by AMFT (arXiv
2508.06944, withdrawn); sign-correct and normalised: see
methods/meta_gradient.py.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: mix/sft_weight drifts by at most
method.meta_gradient.rate in an update.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/meta_gradient"
  c.method.name = "meta_gradient"
  return c
