"""CHORD on multi-step arithmetic: a schedule from SFT to RL (arXiv 2508.11408).

    python -m bilevel_jax.main --config configs/methods/chord.py

(1 - mu) L_RL + mu L_SFT with phi = p (1 - p) on the tokens of demonstrations.
Defaults are the reference code's (Trinity-RFT): mu 0.1 throughout, phi on;
method.chord.peak=0.9, valley=0.05 and token_weight=sft are the paper's
CHORD-mu. Each part is normalised over its own batch, as in that code.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: close to GRPO, pulled towards
demonstrations where the policy is in doubt.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/chord"
  c.method.name = "chord"
  return c
