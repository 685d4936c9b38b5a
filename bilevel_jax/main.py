"""Trains as a config file says.

  python -m bilevel_jax.main --config FILE.py[:NAME] [--config.FIELD=VALUE ...]

FILE.py has a function get_config() that returns the settings. The shortest:

  from bilevel_jax import config

  def get_config():
    c = config.default_config()
    c.model.weights = "Qwen/Qwen2.5-0.5B-Instruct"
    c.data.questions.path = "train.jsonl"
    return c

It may import modules beside it, and settings may name their functions.

  --config FILE.py         the settings
  --config FILE.py:NAME    those of get_config(NAME), as configs/methods.py has
  --config.FIELD=VALUE     another value for one field, in Python's spelling:
                           --config.optimizer.base.learning_rate=1e-5
                           --config.data.questions.path=train.jsonl
                           --config.reward.verifiers=exact,my_rewards.short
  --help                   this text

Several processes that JAX cannot find by itself (SLURM, Open MPI and TPU pods
it can) are told of each other by three flags, all or none:

  --coordinator HOST:PORT  of the first of them
  --processes N            how many there are
  --process I              which one this is, from 0

Every field, its type, default and meaning: docs/reference/settings.md.

Exit code: 0 done; 1 ended before the last step (--config.resume=True goes on);
2 something given cannot be used, and one sentence says what; 130 Ctrl-C, which
ends the run after the step that it is in, and at once when pressed again.
"""

import ast
import itertools
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from bilevel_jax import (
  command_line,
  compile_cache,
  config,
  errors,
  own_code,
  processes,
  train,
)

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "a file of configs/, or your own", lock_config=True
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of the first of several processes"
)
_PROCESSES = flags.DEFINE_integer("processes", None, "how many there are")
_PROCESS = flags.DEFINE_integer("process", None, "which this is, from 0")
# What config_flags puts around an error of the config file, with a traceback.
_WRAPPED = "Error whilst parsing config file"
_ML_COLLECTIONS = str(pathlib.Path(ml_collections.__file__).parent)
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def parse_flags(arguments: Sequence[str]) -> list[str]:
  """Returns what is left of the arguments. --help prints the program's text.

  Args:
    arguments: the command line, with the program's name first.

  Raises:
    ConfigError: a flag or a config file that cannot be used.
  """
  if {"-h", "-help", "--help"} & set(arguments):
    print((sys.modules["__main__"].__doc__ or "").strip())
    sys.exit(0)
  _find_neighbours(arguments)
  arguments, changes = _set_aside(arguments)
  sys.argv = arguments  # where config_flags looks for more
  # config_flags would load a second file into the module of the first.
  sys.modules.pop("config_config", None)
  try:
    left = flags.FLAGS(arguments)
    settings = _CONFIG.value
    if settings is None and not flags.FLAGS["config"].present:
      raise errors.ConfigError("--config must name a config file, got none")
    if not isinstance(settings, ml_collections.ConfigDict):
      # What stands for a file that raised an OSError raises it again here.
      getattr(settings, "items", None)
      raise errors.ConfigError(
        "--config: get_config() must return what config.default_config() "
        f"returned, with changes, got {settings!r:.50}"
      )
  except (Exception, SystemExit) as error:  # a user's file may do anything
    raise errors.ConfigError(_what_is_wrong(error)) from None
  for path, value in changes:
    _change(settings, path, value)
  return left


def _find_neighbours(arguments: Sequence[str]) -> None:
  """Lets what lies beside the config file be imported, after all else."""
  for argument, following in itertools.pairwise([*arguments, ""]):
    name, _, value = argument.partition("=")
    if name in ("-config", "--config"):
      file = (value or following).split(":")[0]
      if not os.path.isfile(file):
        raise errors.ConfigError(f"--config must name a file, got {file!r}")
      sys.path.append(str(pathlib.Path(file).absolute().parent))


def _what_is_wrong(error: BaseException) -> str:
  """Returns a sentence, with the config file's line where it raised that."""
  if isinstance(error, OSError) and error.__cause__ is not None:
    error = error.__cause__
  while _WRAPPED in str(error) and error.__context__ is not None:
    error = error.__context__
  if isinstance(error, errors.ConfigError):
    return str(error)
  if isinstance(error, flags.Error):
    return _one_sentence(error)
  if isinstance(error, AttributeError) and error.name == "get_config":
    file = getattr(error.obj, "__file__", None)
    return f"--config must name a file with a get_config(), {file} has none"
  said = own_code.what_raised(error)
  # Words of a ConfigDict about a field that it does not have.
  frames = traceback.extract_tb(error.__traceback__)
  absent = re.search(r"['\"](\w+)['\"]", str(error).replace("\\", ""))
  if (
    isinstance(error, (AttributeError, KeyError))
    and frames[-1].filename.startswith(_ML_COLLECTIONS)
    and absent
  ):
    known = {part for path in config.defaults() for part in path.split(".")}
    where = said[: said.index(type(error).__name__)]
    suggestion = config.suggestion(absent[1], known)
    return f"{where}{absent[1]} is not a field{suggestion}"
  # Without a line of the user's, it is the call of get_config that failed.
  named = not said.startswith(type(error).__name__)
  return said if named else f"--config: {said}"


def _one_sentence(error: BaseException) -> str:
  return " ".join(str(error).split())


def _set_aside(
  arguments: Sequence[str],
) -> tuple[list[str], list[tuple[list[str], Any]]]:
  """Returns the other arguments, and (path, value) of each --config.x.

  Raises:
    ConfigError: a --config.x.y that names no field, or has no value.
  """
  left, changes = [], []
  for argument in arguments:
    name, equals, text = argument.lstrip("-").partition("=")
    if argument.startswith(("--config.", "-config.")):
      path = name.split(".")[1:]
      config.check_name(path)
      if not equals:
        raise errors.ConfigError(f"{argument} must be followed by =VALUE")
      changes.append((path, _value(text, config.kind_of(path))))
    else:
      left.append(argument)
  return left, changes


def _value(text: str, kind: str) -> Any:
  """Returns what a text on the command line says for a kind of field."""
  if text == "None":
    return None
  if kind == "a string":
    return text
  if kind == "true or false":
    return _TRUTHS.get(text.lower(), text)
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    plain = kind == "a list" and text[:1] not in ("(", "[")
    value = tuple(text.split(",")) if plain else text
  if kind == "a list" and not isinstance(value, (tuple, list)):
    return (value,)
  return value


def _change(
  settings: ml_collections.ConfigDict, path: Sequence[str], value: Any
) -> None:
  group: Any = settings
  for depth, name in enumerate(path[:-1], start=1):
    group = group.get(name)
    if not isinstance(group, ml_collections.ConfigDict):
      raise errors.ConfigError(
        f"{'.'.join(path)}: {'.'.join(path[:depth])} is not a group of fields"
      )
  with group.unlocked(), group.ignore_type():
    group[path[-1]] = value


def read_settings(arguments: Sequence[str]) -> config.Config:
  """Returns the settings of the config file that the flags name.

  Args:
    arguments: what the flags left over.

  Raises:
    ConfigError: an argument too many, or settings that break a rule.
  """
  if len(arguments) > 1:
    raise errors.ConfigError(f"unexpected argument {arguments[1]!r}")
  return config.parse(_CONFIG.value)


def main(arguments: Sequence[str]) -> None:
  """Runs the config file that the flags name."""
  settings = read_settings(arguments)
  compile_cache.enable()
  start_processes()
  train.run(settings)


def start_processes() -> None:
  """Makes this process one of those that the flags name, if they do."""
  processes.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)


def run(
  work: Callable[[Sequence[str]], None] = main,
  arguments: list[str] | None = None,
) -> None:
  """Parses the command line, works, and exits with the code of --help.

  Args:
    work: told what the flags left over.
    arguments: the command line; None: that of this process.
  """
  logging.set_verbosity(logging.ERROR)  # orbax warns where all is well
  command_line.show_any_text()
  try:
    app.run(work, argv=arguments, flags_parser=parse_flags)
  except errors.ConfigError as error:
    shared = isinstance(error, processes.SharedError)
    _say(f"error: {error}", shared)
    processes.leave(2, shared=shared)
  except train.TrainingStopped as error:
    interrupted = isinstance(error, train.Interrupted)
    shared = not isinstance(error, train.CannotWrite)
    _say(f"stopped: {error}", shared)
    processes.leave(130 if interrupted else 1, shared=shared)
  except KeyboardInterrupt:
    _say("stopped: Ctrl-C; --config.resume=True goes on from what is saved")
    processes.leave(130, shared=False)
  except Exception:
    if not processes.several():
      raise
    traceback.print_exc()
    processes.leave(1, shared=False)


def _say(words: str, shared: bool = False) -> None:
  if processes.is_first() or not shared:
    print(words, file=sys.stderr)


if __name__ == "__main__":
  run()
