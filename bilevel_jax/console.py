"""One command for all programs: bilevel-jax COMMAND [OPTION ...]

  bilevel-jax train --model DIR --data FILE --reward math --method bridge

Commands

  train        train as settings say
  generate     complete prompts
  evaluate     score a model on benchmarks
  score        score completions of a file as a reward would
  rank         rank demonstrations
  difficulty   pass rates of a policy on questions

Each has --help. `train`, `rank` and `difficulty` take settings:

  --config FILE        a .py file with get_config(), or a .json or .yaml file of
                       settings, such as a run's config.json; default: none
  --model NAME         model.weights: a directory, run, hub id or .gguf file
  --data NAME          data.questions: a file, directory, hub id or task;
                       several with commas, each with =SHARE or none
  --evaluation NAME    data.evaluation, in the same way
  --reward NAMES       reward.verifiers, with commas
  --method NAME        method.name
  --FIELD VALUE        any other setting, such as --steps 100 or
                       --rollout.samples_per_prompt 8

docs/reference/settings.md has every setting. The run directory is --run_dir.
"""

import importlib
import pathlib
import sys
from collections.abc import Sequence

from bilevel_jax import command_line, compile_cache, config, errors
from bilevel_jax.data import corpora

_START = pathlib.Path(__file__).parent / "config" / "start.py"
_SHORT = {
  "model": "model.weights",
  "reward": "reward.verifiers",
  "method": "method.name",
}
_SOURCES = {"data": "data.questions", "evaluation": "data.evaluation"}
# Of the programs themselves: they are left as they are.
_KEPT = (
  "config", "coordinator", "processes", "process", "help", "h", "times", "out",
  "keep-above",
)  # fmt: skip
_OF_SETTINGS = {
  "train": ("main", "run"),
  "rank": ("rank", "rank"),
  "difficulty": ("difficulty", "difficulty"),
}
_OTHERS = ("generate", "evaluate", "score")


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command; returns its exit code, or ends with it."""
  given = list(sys.argv[1:] if arguments is None else arguments)
  name, rest = (given[0], given[1:]) if given else ("--help", [])
  if name in ("-h", "--help"):
    print((__doc__ or "").strip())
    return 0
  if name in _OTHERS:
    compile_cache.enable()
    return importlib.import_module(f"bilevel_jax.{name}").main(rest)
  if name not in _OF_SETTINGS:
    known = ", ".join((*_OF_SETTINGS, *_OTHERS))
    print(f"error: a command is one of {known}, got {name!r}", file=sys.stderr)
    return 2
  module, function = _OF_SETTINGS[name]
  program = importlib.import_module(f"bilevel_jax.{module}")
  if {"-h", "--help"} & set(rest):
    print(f"{(program.__doc__ or '').strip()}\n\n{__doc__}")
    return 0
  code = command_line.exit_code(lambda: spelled_out(rest))
  if code:
    return code
  sys.argv = [f"bilevel-jax {name}", *spelled_out(rest)]
  getattr(program, function)()
  return 0


def spelled_out(arguments: Sequence[str]) -> list[str]:
  """Returns arguments of `bilevel_jax.main` for those of this command.

  Raises:
    ConfigError: one that names no setting, or has no value.
  """
  changes, left = [], list[str]()
  file: str | None = None
  rest = list(arguments)
  while rest:
    argument = rest.pop(0)
    if not argument.startswith("--") or _is_kept(argument):
      left.append(argument)
      continue
    name, equals, value = argument[2:].partition("=")
    if not equals:
      if not rest:
        raise errors.ConfigError(f"{argument} must be followed by a value")
      value = rest.pop(0)
    if name == "config":
      file = value
    elif name in _SOURCES:
      changes += _source(_SOURCES[name], value)
    else:
      path = _SHORT.get(name, name.replace("-", "_"))
      config.check_name(path.split("."))
      changes.append(f"--config.{path}={value}")
  if file is None:
    file = str(_START)
  elif file.endswith((".json", ".yaml", ".yml")):
    file = f"{_START}:{file}"
  return [f"--config={file}", *changes, *left]


def _is_kept(argument: str) -> bool:
  name = argument.lstrip("-").partition("=")[0]
  return name.startswith("config.") or (name in _KEPT and name != "config")


def _source(group: str, value: str) -> list[str]:
  """The settings of what is named: one source, or several."""
  if "," in value or "=" in value:
    return [f"--config.{group}.sources={value}"]
  return [
    f"--config.{group}.{field}={text}"
    for field, text in corpora.named(value).items()
    if text is not None
  ]


if __name__ == "__main__":
  sys.exit(main())
