"""python -m bilevel_jax.main --config configs/x.py [--config.steps=9 ...]"""

import sys
import traceback
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from bilevel_jax import compile_cache, config, processes, train

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "a file of configs/, or your own", lock_config=True
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of the first of several processes"
)
_PROCESSES = flags.DEFINE_integer("processes", None, "how many there are")
_PROCESS = flags.DEFINE_integer("process", None, "which this is, from 0")


def parse_flags(arguments: Sequence[str]) -> list[str]:
  """Returns what is left of the arguments; a bad flag is one sentence."""
  _check_names(arguments)
  try:
    return flags.FLAGS(list(arguments))
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:
    raise config.ConfigError(_one_sentence(error)) from None
  except OSError as error:
    raise config.ConfigError(f"--config: {_one_sentence(error)}") from None


def _one_sentence(error: BaseException) -> str:
  """Returns the message on one line, without the ConfigDict that may follow."""
  message = " ".join(str(error).strip("\"'").split())
  return message.split(" Other fields present")[0]


def _check_names(arguments: Sequence[str]) -> None:
  """Raises ConfigError where a --config.x.y names no field."""
  for argument in arguments:
    if argument.startswith(("--config.", "-config.")):
      config.check_name(argument.lstrip("-").split("=")[0].split(".")[1:])


def read_settings(arguments: Sequence[str]) -> config.Config:
  """Returns the settings of the config file that the flags name.

  Args:
    arguments: what the flags left over.

  Raises:
    ConfigError: no file, one that cannot be read, or settings that break a
      rule.
  """
  if len(arguments) > 1:
    raise config.ConfigError(f"unexpected argument {arguments[1]!r}")
  if _CONFIG.value is None:
    raise config.ConfigError("--config must name a config file, got none")
  try:
    # What stands for a file that cannot be read fails on its first use.
    given = dict(_CONFIG.value.items())
  except OSError as error:
    raise config.ConfigError(_one_sentence(error)) from None
  return config.parse(given)


def main(arguments: Sequence[str]) -> None:
  """Runs the config file that the flags name."""
  settings = read_settings(arguments)
  compile_cache.enable()
  processes.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  train.run(settings)


def run() -> None:
  """Parses the command line, trains, and exits: 2 bad input, 1 stopped."""
  logging.set_verbosity(logging.ERROR)  # orbax warns where all is well
  try:
    app.run(main, flags_parser=parse_flags)
  except config.ConfigError as error:
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
