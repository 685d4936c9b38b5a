"""UFT on multi-step arithmetic: hints that shrink (arXiv 2505.16984).

    python -m bilevel_jax.main --config configs/methods/uft.py

All samples of a question begin with the same part of its worked solution, at
first nearly all but the answer, after 60% of the steps nothing. What is drawn
is learned from by RL, the hint by 0.001 times -log p. Ours: pieces are of equal
tokens; questions without a solution (three quarters here) have no hint.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: rollout/given_tokens falls to 0 after 24 of
the 40 steps. Seen once, on 150 held-out questions: 11.3% before, 60.0% after
(95% interval 52.0% to 67.5%).
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/uft"
  c.method.name = "uft"
  return c
