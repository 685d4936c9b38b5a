"""What SFT and RL undo of each other, on arithmetic (arXiv 2601.07389).

    python -m bilevel_jax.main --config configs/methods/non_decoupling.py

A diagnostic of configs/methods/non_decoupling.py in both orders, the other by
--config.method.non_decoupling.first=rl. Every step measures the SFT loss, the
reward and the cosine of both gradients, and moves by its stage's gradient
alone; in the second stage rl/kl_to_reference is to what the first one made.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: sft/loss rises in
a second stage of RL; rl/reward may fall in one of SFT.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/non_decoupling"
  c.method.name = "non_decoupling"
  return c
