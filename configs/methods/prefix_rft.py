"""Prefix-RFT on multi-step arithmetic: a guided sample a group (2507.01679).

    python -m bilevel_jax.main --config configs/methods/prefix_rft.py

The last of a question's samples goes on from the first part of its worked
solution: from nearly all of it at first to any part at the end. The sample's
advantage, against the others' mean, is also that of its given tokens, but only
of the fifth of them at which the policy is least sure. Ours: questions without
a solution (three quarters here) have no guided sample.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: rollout/given_tokens falls over the run;
rl/accuracy_unguided, that of the other samples, rises. Seen once, on 150
held-out questions: 11.3% before, 64.7% after (95% interval 56.7% to 71.9%).
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/prefix_rft"
  c.method.name = "prefix_rft"
  return c
