"""RL and SFT in turns on multi-step arithmetic (arXiv 2507.07562).

    python -m bilevel_jax.main --config configs/methods/interleaved.py

A recipe of the Synergy study, whose definition could not be read; ours: in each
step an update of RL, then one of SFT, with an optimiser of its own, on the
worked solutions of the questions that no sample solved.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method. Expected: mix/sft_questions
falls as questions are solved.
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/interleaved"
  c.method.name = "interleaved"
  return c
