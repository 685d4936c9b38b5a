"""Makes the weak policy that configs/quickstart.py starts from."""

import argparse
import pathlib
import shutil

from bilevel_jax import config, train
from bilevel_jax.data import tokenizer
from configs import arithmetic_pretraining


def main() -> None:
  """Pre-trains by configs/arithmetic_pretraining.py and keeps the export."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--steps", type=int, help="default: the config's")
  parser.add_argument("--run-dir", type=pathlib.Path, default=None)
  arguments = parser.parse_args()
