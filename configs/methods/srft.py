"""SRFT on multi-step arithmetic: entropy sets the mix (arXiv 2506.19767).

    python -m bilevel_jax.main --config configs/methods/srft.py

Four terms in one update: SFT on a question's worked solution, weighed by
exp(-H), least where the policy is in doubt; that solution as a member of its
group; right samples weighed by exp(+H); wrong ones pushed away. The official
code has exp(+H) in the first term: method.srft.sft_exponent=code. Ours:
samples and solutions count the same, row by row.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: mix/sft_share
grows as the policy becomes sure of the solutions.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/srft"
  c.method.name = "srft"
  return c
