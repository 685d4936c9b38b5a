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
                           --config.reward.verifiers="('exact',)"
  --help                   this text

Several processes that JAX cannot find by itself (SLURM, Open MPI and TPU pods
it can) are told of each other by three flags, all or none:

  --coordinator HOST:PORT  of the first of them
  --processes N            how many there are
  --process I              which one this is, from 0

Every field, its type, default and meaning: docs/reference/settings.md.

Exit code: 0 done; 1 ended before the last step (--config.resume=True goes on);
2 something given cannot be used, and one sentence says what.
"""

import ast
import itertools
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from bilevel_jax import compile_cache, config, errors, processes, train

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


def parse_flags(arguments: Sequence[str]) -> list[str]:
  """Returns what is left of the arguments. --help prints the program's text.

  Args:
    arguments: the command line, with the program's name first.

  Raises:
    ConfigError: a flag that cannot be used.
  """
  if {"-h", "-help", "--help"} & set(arguments):
    print((sys.modules["__main__"].__doc__ or "").strip())
    sys.exit(0)
  _find_neighbours(arguments)
  arguments, changes = _set_aside(arguments)
  sys.argv = arguments  # where config_flags looks for --config.x
  try:
    left = flags.FLAGS(arguments)
    for path, value in changes if _CONFIG.value is not None else ():
      group: Any = _CONFIG.value
      for name in path[:-1]:
        group = group[name]
      with group.unlocked(), group.ignore_type():
        group[path[-1]] = value
    return left
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:
    raise errors.ConfigError(_what_is_wrong(error)) from None
  except OSError as error:
    raise errors.ConfigError(f"--config: {_one_sentence(error)}") from None


def _find_neighbours(arguments: Sequence[str]) -> None:
  """Lets what lies beside the config file be imported, after all else."""
  for argument, following in itertools.pairwise([*arguments, ""]):
    name, _, value = argument.partition("=")
    if name in ("-config", "--config"):
      file = (value or following).split(":")[0]
      sys.path.append(str(pathlib.Path(file).absolute().parent))


def _what_is_wrong(error: BaseException) -> str:
  """Returns a sentence, with the config file's line where it raised that."""
  wrapped = _WRAPPED in str(error)
  while _WRAPPED in str(error) and error.__context__ is not None:
    error = error.__context__
  if isinstance(error, errors.ConfigError):
    return str(error)
  frames = traceback.extract_tb(error.__traceback__)
  own = [
    frame
    for frame in itertools.dropwhile(lambda f: f.name != "get_config", frames)
    if not frame.filename.startswith(_ML_COLLECTIONS)
  ]
  if not own:
    return ("--config: " if wrapped else "") + _one_sentence(error)
  where = f"{own[-1].filename}, line {own[-1].lineno}"
  # Words of a ConfigDict about a field that it does not have.
  quoted = re.search(r"['\"](\w+)['\"]", str(error).replace("\\", ""))
  absent = isinstance(error, (AttributeError, KeyError))
  if own[-1] != frames[-1] and absent and quoted:
    known = {part for path in config.defaults() for part in path.split(".")}
    suggestion = config.suggestion(quoted[1], known)
    return f"{where}: {quoted[1]} is not a field{suggestion}"
  return f"{where}: {type(error).__name__}: {_one_sentence(error)}"


def _one_sentence(error: BaseException) -> str:
  """Returns the message on one line, without the ConfigDict that may follow."""
  message = " ".join(str(error).split()).split(" Other fields present")[0]
  quoted = message[:1] in ("'", '"') and message[:1] == message[-1:]
  return message[1:-1] if quoted else message


def _set_aside(
  arguments: Sequence[str],
) -> tuple[list[str], list[tuple[list[str], Any]]]:
  """Returns the other arguments, and (path, value) of what no flag can say.

  That is None, and keys of the user's own, such as those of `task_options`.

  Raises:
    ConfigError: a --config.x.y that names no field, or has no value.
  """
  left, changes = [], []
  fields = config.defaults()
  for argument in arguments:
    name, equals, text = argument.lstrip("-").partition("=")
    path = name.split(".")[1:]
    if path and argument.startswith(("--config.", "-config.")):
      config.check_name(path)
      own = ".".join(path) not in fields
      if own and not equals:
        raise errors.ConfigError(f"{argument} must be followed by =VALUE")
      if own or text == "None":
        changes.append((path, _literal(text)))
        continue
    left.append(argument)
  return left, changes


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def read_settings(arguments: Sequence[str]) -> config.Config:
  """Returns the settings of the config file that the flags name.

  Args:
    arguments: what the flags left over.

  Raises:
    ConfigError: no file, one that cannot be read, or settings that break a
      rule.
  """
  if len(arguments) > 1:
    raise errors.ConfigError(f"unexpected argument {arguments[1]!r}")
  if _CONFIG.value is None:
    raise errors.ConfigError("--config must name a config file, got none")
  try:
    # What stands for a file that cannot be read fails on its first use.
    given = dict(_CONFIG.value.items())
  except OSError as error:
    raise errors.ConfigError(_one_sentence(error)) from None
  return config.parse(given)


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
  """Parses the command line, works, and exits: 2 bad input, 1 stopped.

  Args:
    work: told what the flags left over.
    arguments: the command line; None: that of this process.
  """
  logging.set_verbosity(logging.ERROR)  # orbax warns where all is well
  try:
    app.run(work, argv=arguments, flags_parser=parse_flags)
  except errors.ConfigError as error:
    shared = isinstance(error, processes.SharedError)
    _say(f"error: {error}", shared)
    processes.leave(2, shared=shared)
  except train.TrainingStopped as error:
    _say(f"stopped: {error}", shared=True)
    processes.leave(1, shared=True)
  except (Exception, KeyboardInterrupt):
    if not processes.several():
      raise
    traceback.print_exc()
    processes.leave(1, shared=False)


def _say(words: str, shared: bool) -> None:
  if processes.is_first() or not shared:
    print(words, file=sys.stderr)


if __name__ == "__main__":
  run()
