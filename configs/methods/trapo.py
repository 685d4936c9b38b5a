"""TRAPO on multi-step arithmetic: help where samples fail (2512.17636).

    python -m bilevel_jax.main --config configs/methods/trapo.py

Of 8 samples the first 4 are unguided; the next 2, 1 and 1 begin with 0.2, 0.5
and all of the worked solution where the mean reward before them is below 0.5,
0.7 and 0.9 (the paper's; the public code's are 0.5, 0.66 and 1). A given token
of probability p is learned with the weight min(1, p / 0.1), the rest by RL over
all 8. The paper has no std, no clip and no KL: --config.rl.advantage=group_mean
--config.rl.kl_coef=0. Ours: questions without a solution (three quarters here)
are never helped; the cut is not moved to the end of a paragraph.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: rollout/guided_share is near 0.1, less as
questions are solved. Seen once, on 150 held-out questions: 11.3% before,
59.3% after (95% interval 51.3% to 66.9%).
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/trapo"
  c.method.name = "trapo"
  return c
