"""Old names, until `train`, `study.work` and tools say `weights.sampler`."""

import pathlib

from bilevel_jax import weights
from bilevel_jax.data import settings
from bilevel_jax.weights import sampler
from bilevel_jax.weights.sampler import Sampler as Model


def load(
  source: str, scratch: pathlib.Path, prompt_format: settings.Tokenizer
) -> Model:
  """Returns `sampler.make` of what `weights.open` opens."""
  del scratch
  return sampler.make(weights.open(source), prompt_format)
