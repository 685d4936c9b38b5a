"""PEAR on multi-step arithmetic: SFT that prepares for RL (arXiv 2602.01058).

    python -m bilevel_jax.main --config configs/methods/pear.py

First SFT, in which a token weighs as much as the policy, rather than what
wrote the solution, would make what follows it; then RL. Give the writer's
weights (method.expert.weights), or a field `logprobs` with a number for each
token of a solution. Ours: with neither, as here, the writer is taken to be the
model that the run begins with, so all weights are discounts alone at first; the
stages are those of method.sft_then_rl.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: near
sft_then_rl, with a slower SFT stage.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/pear"
  c.method.name = "pear"
  return c
