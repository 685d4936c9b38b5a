"""Makes the weak policies of bilevel_jax/assets.

    python tools/make_arithmetic_policy.py --policy arithmetic_policy
    python tools/make_arithmetic_policy.py --policy guessing_policy

arithmetic_policy, which configs/quickstart.py starts from, is trained by
configs/arithmetic_pretraining.py and then by configs/arithmetic_guessing.py;
guessing_policy, which configs/spoiled_demonstrations.py starts from, by the two
stages of experiments/studies/arithmetic.py that make the base of its regime B.
Writes a character tokenizer, trains, and keeps what the second run exports, in
bfloat16: config.json, model.safetensors and the tokenizer's files.

An interrupted run goes on where it was with the same command.
"""

import argparse
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import rich.console
import rich.table

from bilevel_jax import command_line, config, train
from bilevel_jax.data import tokenizer_files
from bilevel_jax.runs import finished
from bilevel_jax.weights import huggingface

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from configs import arithmetic_guessing, arithmetic_pretraining
from experiments.studies import arithmetic

ROOT = pathlib.Path(__file__).parents[1]


def stages(policy: str) -> tuple[Any, Any]:
  """Returns the settings of the two runs that make a policy."""
  if policy == "arithmetic_policy":
    return (
      arithmetic_pretraining.get_config(),
      arithmetic_guessing.get_config(),
    )
  made = arithmetic.get_study().stages
  return made["reasoner"], made["seldom"]


def main(given: Sequence[str] | None = None) -> int:
  """Returns the exit code of `command_line.exit_code`."""
  parser = command_line.Parser(
    "python tools/make_arithmetic_policy.py", __doc__
  )
  parser.add_argument(
    "--policy",
    choices=("arithmetic_policy", "guessing_policy"),
    default="arithmetic_policy",
    help="which one (default arithmetic_policy)",
  )
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    help="directory to write; default: bilevel_jax/assets/POLICY",
  )
  parser.add_argument(
    "--work",
    type=pathlib.Path,
    help="where the two runs leave their files, and are continued from; "
    "default: runs/POLICY",
  )
  parser.add_argument(
    "--steps", type=int, help="of the first run; default: the config's"
  )
  parser.add_argument("--json", type=pathlib.Path, help="write the figures")
  arguments = parser.parse_args(given)
  return command_line.exit_code(lambda: _make(arguments))


def _make(arguments: argparse.Namespace) -> None:
  """Trains, exports, and prints what came of it."""
  command_line.check_bounds(arguments, {"steps": {"at_least": 1}})
  out = arguments.out or ROOT / "bilevel_jax" / "assets" / arguments.policy
  work = arguments.work or pathlib.Path("runs") / arguments.policy
  characters = work / "tokenizer"
  tokenizer_files.character_tokenizer(characters)
  reasoner, guesser = stages(arguments.policy)
  reasoner.tokenizer.path = str(characters)
  if arguments.steps is not None:
    reasoner.steps = arguments.steps
  guesser.model.preset = None
  guesser.model.weights = str(_trained(reasoner, work / "reasoner"))
  exported = _trained(guesser, work / "guesser")
  architecture = huggingface.read_architecture(exported)
  base = huggingface.load_base(exported, architecture)
  shutil.rmtree(out, ignore_errors=True)
  huggingface.export(
    out,
    architecture,
    base,
    source_directory=exported,
    dtype="bfloat16",
  )
  trained = finished.read_run(exported.parent)
  figures = {
    "parameters": sum(x.size for x in jax.tree.leaves(base)),
    "bytes": (out / "model.safetensors").stat().st_size,
    "accuracy": trained.last("evaluation/accuracy"),
  }
  table = rich.table.Table("figure", "value")
  for name, value in figures.items():
    table.add_row(name, str(value))
  rich.console.Console().print(table)
  if arguments.json:
    arguments.json.write_text(json.dumps(figures, indent=2))


def _trained(
  settings: ml_collections.ConfigDict, run_dir: pathlib.Path
) -> pathlib.Path:
  """Trains, or goes on, or finds it done; returns the exported weights."""
  settings.run_dir = str(run_dir)
  settings.resume = run_dir.exists()
  if not (run_dir / "report.html").exists():  # what a run writes last
    train.run(config.parse(settings))
  return run_dir / "export"


if __name__ == "__main__":
  sys.exit(main())
