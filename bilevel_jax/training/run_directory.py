"""The files that a run leaves, and who may write to them."""

import dataclasses
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
from bilevel_jax.training import metrics

# What a resumed run may change: none of it moves a number of a step, but for
# the rounding of other devices.
MAY_CHANGE = (
  "run_dir",
  "resume",
  "steps",
  "evaluation.every",
  "checkpoints",
  "logging",
  "mesh",
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class RunDirectory:
  """Paths of a run's files."""

  path: pathlib.Path

  @property
  def settings(self) -> pathlib.Path:
    """Settings and versions, as JSON; there as soon as the run has begun."""
    return self.path / "config.json"

  @property
  def metrics(self) -> pathlib.Path:
    """Numbers, a JSON line a step."""
    return self.path / "metrics.jsonl"

  @property
  def completions(self) -> pathlib.Path:
    """Prompts, completions and rewards, a JSON line each."""
    return self.path / "completions.jsonl"

  @property
  def answers(self) -> pathlib.Path:
    """Answers to the held-out questions, a JSON line each, at each evaluation.

    The same fields as `completions`.
    """
    return self.path / "answers.jsonl"

  @property
  def checkpoints(self) -> pathlib.Path:
    """Directory of checkpoints."""
    return self.path / "checkpoints"

  @property
  def export(self) -> pathlib.Path:
    """Directory of Hugging Face weights."""
    return self.path / "export"

  @property
  def report(self) -> pathlib.Path:
    """Curves and sample completions, as a page; written last."""
    return self.path / "report.html"

  def start(self, settings: config.Config, step: int) -> None:
    """Writes config.json, and drops the report and what was logged later.

    Args:
      step: steps done before: 0, or those of the checkpoint restored.
    """
    write_atomically(
      self.settings,
      json.dumps(
        {"config": config.to_dict(settings), "versions": _versions()}, indent=2
      ),
    )
    self.report.unlink(missing_ok=True)
    # A run that starts at 0 evaluates its start again.
    kept = step if step else -1
    metrics.truncate(self.metrics, kept)
    metrics.truncate(self.completions, kept)
    metrics.truncate(self.answers, kept)

  def logged_at(self, step: int) -> dict[str, Any]:
    """Returns everything that was logged at a step; {} where nothing was."""
    merged: dict[str, Any] = {}
    for record in metrics.read(self.metrics):
      if record["step"] == step:
        merged |= record
    return merged


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


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a file so that it is the old one or the new one, never a part."""
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


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
  metrics.check_installed(settings.logging)


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
    text = directory.settings.read_text(encoding="utf-8")
    then = json.loads(text)["config"]
  except FileNotFoundError:
    raise errors.ConfigError(
      f"nothing to resume: {directory.path} has no config.json"
    ) from None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.ConfigError(
      f"cannot resume: {directory.settings} cannot be read ({error})"
    ) from None
  now = json.loads(json.dumps(config.to_dict(settings)))
  changed = list(_differences(then, now, ""))
  if changed:
    raise errors.ConfigError(
      f"cannot resume {directory.path} with other settings: "
      + "; ".join(changed)
    )


def _differences(then: Any, now: Any, path: str) -> Iterator[str]:
  """Yields a phrase for each setting that a resumed run may not change."""
  if path in MAY_CHANGE or then == now:
    return
  if isinstance(then, Mapping) and isinstance(now, Mapping):
    for name in [*now, *(name for name in then if name not in now)]:
      inner = f"{path}.{name}" if path else name
      yield from _differences(then.get(name), now.get(name), inner)
    return
  yield f"{path} must stay {then!r}, got {now!r}"


def _check_writable(path: pathlib.Path) -> None:
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    raise errors.ConfigError(
      f"run_dir {path} must be a directory that can be written, got "
      f"{error.strerror or error}"
    ) from None


def _versions() -> dict[str, str]:
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {
    "bilevel_jax": bilevel_jax.__version__,
    "python": platform.python_version(),
    **versions,
  }
