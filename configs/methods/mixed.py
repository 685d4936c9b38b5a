"""SFT and RL as one weighted loss, on multi-step arithmetic.

    python -m bilevel_jax.main --config configs/methods/mixed.py

L_RL + method.mixed.sft_weight L_SFT, the naive mixture that BRIDGE is compared
with. A weight of 1 is not a mix of 1:1: mix/sft_share logs what it is.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: both losses are descended; mix/sft_share
says how unequally.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/mixed"
  c.method.name = "mixed"
  return c
