"""Where a run's files are, and who may write to them."""

import contextlib
import dataclasses
import fcntl
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import bilevel_jax
from bilevel_jax import config, errors, processes
from bilevel_jax.data import dates, json_lines
from bilevel_jax.runs import records, reward_failures

# What a resumed run may change: none of it moves a number of a step, but for
# the rounding of other devices, and completions that need more memory.
MAY_CHANGE = (
  "run_dir",
  "resume",
  "steps",
  "tokenizer.date",  # examples that it changes are refused
  "evaluation.every",
  "checkpoints",
  "logging",
  "mesh",
  "reward.memory",
)
_LEAST_BYTES = 2**18  # free on the disk, for a start
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunDirectory:
  """Paths of a run's files.

  Attributes:
    path: the directory itself.
    settings: settings and versions, as JSON; there once a run has started.
    metrics: numbers, a JSON line a step.
    completions: prompts, completions and rewards, a JSON line each.
    answers: the same of held-out questions, at each evaluation.
    checkpoints: directory of checkpoints.
    export: directory of Hugging Face weights.
    demonstrations: what the upper level learned of each one, a JSON line each.
    reward_failures: the first completions that could not be scored, and why.
    report: curves and sample completions, as a page; written last.
  """

  def __init__(self, path: str | pathlib.Path) -> None:
    self.path = pathlib.Path(path)
    self.settings = self.path / "config.json"
    self.metrics = self.path / "metrics.jsonl"
    self.completions = self.path / "completions.jsonl"
    self.answers = self.path / "answers.jsonl"
    self.checkpoints = self.path / "checkpoints"
    self.export = self.path / "export"
    self.report = self.path / "report.html"
    self.demonstrations = self.path / "demonstrations.jsonl"
    self.reward_failures = self.path / "reward_failures.txt"

  def start(
    self, settings: config.Config, step: int, isolation: str | None = None
  ) -> None:
    """Writes config.json, and drops the report and what was logged later.

    Args:
      step: steps done before: 0, or those of the checkpoint restored.
      isolation: of programs that are completions, where there are any.
    """
    versions = {
      "bilevel_jax": bilevel_jax.__version__,
      "python": platform.python_version(),
      **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    given = {"config": config.to_dict(settings), "versions": versions}
    if isolation is not None:
      given["isolation"] = isolation
    records.write_atomically(self.settings, json.dumps(given, indent=2))
    self.report.unlink(missing_ok=True)
    self.demonstrations.unlink(missing_ok=True)
    for path in (self.metrics, self.completions, self.answers):
      # A run that starts at 0 evaluates its start again.
      records.drop_after(path, step or -1)
    reward_failures.drop_after(self.reward_failures, step or -1)

  def dated(self, settings: config.Config) -> config.Config:
    """Returns the settings with a date for prompts: the one of the run's start.

    Every process must call it: where there is no date yet, the first one's
    clock counts.
    """
    date = settings.tokenizer.date
    if date is None and self.settings.exists():
      then = json.loads(self.settings.read_text("utf-8"))
      date = then["config"]["tokenizer"].get("date")
    if date is None:
      seconds = processes.gather(np.uint32(time.time()))[0]
      date = dates.of_seconds(int(seconds))
    return dataclasses.replace(
      settings, tokenizer=dataclasses.replace(settings.tokenizer, date=date)
    )

  def logged_at(self, step: int) -> dict[str, Any]:
    """Returns everything that was logged at a step; {} where nothing was."""
    return records.by_step(self.metrics).get(step, {})


def prepare(
  run_dir: str | pathlib.Path, settings: config.Config, resume: bool
) -> RunDirectory:
  """Returns the run directory, made if need be; writes nothing into it yet.

  Args:
    settings: of the run that is about to start.
    resume: whether it continues the run in run_dir.

  Raises:
    ConfigError: run_dir cannot be written, holds a run though resume is
      false, or holds none, or one of other settings, though resume is true;
      or a logger that is asked for is not installed.
  """
  directory = RunDirectory(pathlib.Path(run_dir).absolute())
  processes.on_first(lambda: _check(directory, settings, resume))
  if processes.several():
    _check_shared(directory.path)
  return directory


@contextlib.contextmanager
def claimed(path: pathlib.Path, what: str) -> Iterator[None]:
  """Keeps other processes out of a directory; a claim ends with its holder.

  Of several processes of one run the first holds it. A file system that knows
  no locks is left without.

  Args:
    path: of the directory, which must be there.
    what: what a message calls it, such as run_dir.

  Raises:
    ConfigError: another run holds it.
  """
  held = processes.on_first(lambda: _locked(path, what))
  try:
    yield
  finally:
    if held is not None:
      os.close(held)


def _locked(path: pathlib.Path, what: str) -> int | None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(descriptor)
    raise errors.ConfigError(
      f"{what} {path} is in use by a run that has not ended"
    ) from None
  except OSError:
    os.close(descriptor)
    return None
  return descriptor


def check_installed(settings: config.Logging) -> None:
  """Returns when every logger that is asked for can be imported.

  Raises:
    ConfigError: a logger is not installed.
  """
  for field, package, extra in (
    ("tensorboard", "tensorboardX", "tensorboard"),
    ("wandb_project", "wandb", "wandb"),
  ):
    try:
      if getattr(settings, field) not in (None, False):
        importlib.import_module(package)
    except ImportError:
      raise errors.ConfigError(
        f"logging.{field} needs the package {package}, which is not "
        f"installed: pip install 'bilevel_jax[{extra}]'"
      ) from None


def _check(
  directory: RunDirectory, settings: config.Config, resume: bool
) -> None:
  used = _used(directory)
  if used and not resume:
    raise errors.ConfigError(
      f"run_dir {directory.path} must be unused unless resume is set, got one "
      f"with {used}"
    )
  if resume:
    _check_same_run(directory, settings)
  _check_writable(directory.path)
  check_installed(settings.logging)


def _check_shared(path: pathlib.Path) -> None:
  """Every process writes its part of a checkpoint there."""
  # A name that no other run has left in a directory of the same name.
  token = processes.gather(np.uint32(time.time_ns() % 2**32))[0]
  probe = path / f".seen-by-all-{token}"
  processes.on_first(probe.touch)
  try:
    with processes.together():
      if not probe.exists():
        raise errors.ConfigError(
          f"run_dir {path} must be on a file system that all processes share"
        )
  finally:
    if processes.is_first():
      probe.unlink(missing_ok=True)


def _used(directory: RunDirectory) -> str | None:
  for path in (directory.settings, directory.metrics, directory.completions):
    if path.exists():
      return path.name
  if directory.checkpoints.is_dir() and any(directory.checkpoints.iterdir()):
    return directory.checkpoints.name
  return None


def _check_same_run(directory: RunDirectory, settings: config.Config) -> None:
  try:
    then = json_lines.parse(
      directory.settings.read_bytes(), str(directory.settings)
    )["config"]
  except FileNotFoundError:
    raise errors.ConfigError(
      f"nothing to resume: {directory.path} has no config.json"
    ) from None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.ConfigError(
      f"cannot resume: {directory.settings} cannot be read ({error})"
    ) from None
  now = json.loads(json.dumps(config.to_dict(settings)))
  if changed := "; ".join(_differences(then, now, "")):
    raise errors.ConfigError(
      f"cannot resume {directory.path} with other settings: {changed}"
    )


def _differences(then: Any, now: Any, path: str) -> Iterator[str]:
  """Yields a phrase for each setting that a resumed run may not change."""
  if path in MAY_CHANGE or then == now:
    return
  if isinstance(then, Mapping) and isinstance(now, Mapping):
    for name in dict.fromkeys((*now, *then)):
      inner = f"{path}.{name}" if path else name
      yield from _differences(then.get(name), now.get(name), inner)
    return
  if isinstance(then, str) and isinstance(now, str) and _same_file(then, now):
    return
  yield f"{path} must stay {then!r}, got {now!r}"


def _same_file(one: str, other: str) -> bool:
  real = [os.path.realpath(os.path.expanduser(path)) for path in (one, other)]
  return real[0] == real[1] and os.path.exists(real[0])


def _check_writable(path: pathlib.Path) -> None:
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path) as file:
      file.write(bytes(_LEAST_BYTES))
  except OSError as error:
    raise errors.ConfigError(
      f"run_dir {path} must be a directory that can be written, got "
      f"{error.strerror or error}"
    ) from None
