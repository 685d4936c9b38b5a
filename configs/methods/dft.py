"""DFT on multi-step arithmetic: SFT weighted by probability (arXiv 2508.05629).

    python -m bilevel_jax.main --config configs/methods/dft.py

-sg[p] log p on each token of a demonstration, p its probability: what the
policy finds unlikely is hardly learned, and the gradient is that of p itself.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: gentler than SFT on a policy that already
solves some of the questions.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/dft"
  c.method.name = "dft"
  return c
