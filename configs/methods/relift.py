"""ReLIFT on multi-step arithmetic: SFT on what RL fails (2506.07527).

    python -m bilevel_jax.main --config configs/methods/relift.py

Questions that no sample solved wait, with their worked solutions, in a buffer;
when it holds method.relift.buffer of them (16; the code: 128), the step ends
with an update of SFT on them, by an optimiser of its own. Ours: no entropy
bonus; questions without a solution (three quarters here) stay with RL alone.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: mix/held_back grows by one or two a step,
and sft/loss appears in the steps that empty the buffer. Seen once, on 150
held-out questions: 11.3% before, 60.7% after (95% interval 52.7% to 68.1%).
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/relift"
  c.method.name = "relift"
  return c
