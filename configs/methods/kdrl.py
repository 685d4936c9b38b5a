"""KDRL on multi-step arithmetic: RL with a teacher (arXiv 2506.02208).

    python -m bilevel_jax.main --config configs/methods/kdrl.py

RL, and beta times the KL to a teacher on the policy's own samples, beta from
5e-3 to 1e-3 (the paper's best). Any weights with the same vocabulary can teach:
after configs/methods/sft.py, --config.method.expert.weights=runs/sft. Ours:
without any, as here, the teacher is the model that the run begins with; the
KL is a shift of the advantage, the same gradient on policy.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: close to GRPO
with this teacher.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/kdrl"
  c.method.name = "kdrl"
  return c
