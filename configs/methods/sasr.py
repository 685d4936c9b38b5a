"""SASR on multi-step arithmetic: a gate by gradient norm (arXiv 2505.13026).

    python -m bilevel_jax.main --config configs/methods/sasr.py

After a warm-up of SFT each step is of SFT with the probability G_last /
(G_last + gamma G_warm), else of GRPO with a KL to the warm-up's policy. Ours:
gamma 1 and five warm-up steps, which the paper's abstract does not give; one
optimiser for both.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: SFT steps become rarer as its gradient
norm falls: mix/sft_probability.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/sasr"
  c.method.name = "sasr"
  return c
