"""GTA on multi-step arithmetic: guess, think, answer (arXiv 2509.12108).

    python -m bilevel_jax.main --config configs/methods/gta.py

Demonstrations are "guess 42:" and the worked solution. SFT sees the guess
alone, RL everything but the guess, and the SFT gradient is added to RL's unless
the two point apart (cosine below 0). With a model that knows tags, the paper's
template is

    data.solution = "<guess>{answer}</guess><think>"
    method.gta.guess_end = "</guess>"

a prompt that asks for <guess>, <think> and <answer>, and a `regex` among
reward.verifiers for the format. Ours: characters that this policy knows; the
cosine is over all parameters, and the guess that SFT sees is a demonstration's:
the paper does not say.

Hardware: 2 CPU cores, no download. The same as configs/quickstart.py in
everything but the method and the text of the demonstrations. Expected:
mix/sft_weight is 1 or 0 from step to step, 1 in about a third of them: to guess
and to compute pull apart here, so rollout/lead_share, the samples that guess,
stays at a few percent, and RL does the work. Seen once, on 150 held-out
questions: 11.3% before, 52.7% after (95% interval 44.7% to 60.5%).
"""

from configs import quickstart


def get_config():
  """Returns the settings of this run."""
  c = quickstart.get_config()
  c.run_dir = "runs/gta"
  c.data.solution = "guess {answer}:{solution}"
  c.method.name = "gta"
  c.method.gta.guess_end = ":"
  return c
