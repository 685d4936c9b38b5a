"""Shuffle-R1 on multi-step arithmetic: the telling rollouts (arXiv 2508.05612).

    python -m bilevel_jax.main --config configs/methods/shuffle.py

RL alone: a question's samples are paired, best with worst; half of the pairs
are kept, and the step's are drawn in 8 rounds by the size of their advantages.
Ours: a sample drawn c times is a row with c times its advantage. Samples are
not doubled here; the paper samples twice what it keeps.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: fewer rows count, each with more to say.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/shuffle"
  c.method.name = "shuffle"
  return c
