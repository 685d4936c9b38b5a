"""SFT, then RL in stages, on multi-step arithmetic (arXiv 2506.13284).

    python -m bilevel_jax.main --config configs/methods/staged.py

AceReason's plan: after SFT, RL at half, three quarters and all of the longest
completion, without KL; truncated samples are left out but in the last stage,
where questions that are mostly solved are left out instead. The temperature
follows the entropy towards 0.3. Ours: that controller, where the paper chose
the temperature by hand; stages of equal length; a question's accuracy is that
of the step's own samples.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: rl/entropy moves
towards 0.3 as rollout/temperature does its part.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/staged"
  c.method.name = "staged"
  return c
