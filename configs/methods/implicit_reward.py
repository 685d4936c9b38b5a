"""Slow SFT, then DPO, on multi-step arithmetic (arXiv 2507.00018).

    python -m bilevel_jax.main --config configs/methods/implicit_reward.py

SFT at a quarter of the learning rate, as the paper advises, then DPO: every
right sample of a question is preferred to every wrong one, and the reference
is what SFT made. Ours: the pairs are fresh rollouts; half of the steps each
(method.sft_then_rl.sft_share); the paper's other f-divergences are left out.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: from step 21 on
rl/loss starts at log 2.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/implicit_reward"
  c.method.name = "implicit_reward"
  return c
