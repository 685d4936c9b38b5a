"""GTA's gradient combiner on multi-step arithmetic (arXiv 2509.12108).

    python -m bilevel_jax.main --config configs/methods/gta.py

The SFT gradient is added to RL's unless the two point apart (cosine below 0).
The paper has the policy guess, think and answer in one completion, and applies
SFT to the guess alone. Ours: the demonstrations are what SFT sees (give it
demonstrations of guesses for the paper's set-up), and no token of a rollout is
left out of RL. The cosine is over all parameters: the paper does not say.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: mix/sft_weight is 1 or 0 from step to
step.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/gta"
  c.method.name = "gta"
  return c
