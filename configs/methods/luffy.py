"""LUFFY on multi-step arithmetic: off-policy guidance (arXiv 2504.14945).

    python -m bilevel_jax.main --config configs/methods/luffy.py

The worked solution of a question joins its samples in the group's baseline, and
is learned from with the weight gamma p / (p + gamma)^2, which lifts tokens that
the policy finds unlikely. Ours: it is one more sample, not one of G; samples
keep the clip; the advantage is rl.advantage's (the paper: group_mean, with
rl.weighting=constant and rl.kl_coef=0).

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: demonstrations count most where the
samples are wrong.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/luffy"
  c.method.name = "luffy"
  return c
