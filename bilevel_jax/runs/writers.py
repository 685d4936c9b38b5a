"""Numbers and completions of every step, to files and to loggers."""

import errno
import importlib
import math
import os
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from bilevel_jax import config
from bilevel_jax.runs import directory
from bilevel_jax.runs.records import Record, by_step, to_json
from bilevel_jax.types import Metrics


class _Logger(Protocol):
  def step(self, step: int, values: Mapping[str, float]) -> None: ...
  def completions(self, step: int, rows: Sequence[Record]) -> None: ...
  def close(self) -> None: ...


class Writers:
  """Everything that a run logs to, as one; a context."""

  def __init__(
    self,
    files: directory.RunDirectory,
    settings: config.Config,
    *,
    silent: bool = False,
  ) -> None:
    """Opens the files of JSON lines, and what the settings ask for.

    Args:
      settings: of the run; `logging` says what, the rest goes to W&B.
      silent: whether to open nothing and log nothing.

    Raises:
      ConfigError: a logger is asked for and not installed.
    """
    self._files, self._loggers = files, list[_Logger]()
    self._open: dict[pathlib.Path, int] = {}  # descriptors
    if silent:
      return
    directory.check_installed(settings.logging)
    for path in (files.metrics, files.completions, files.answers):
      flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
      self._open[path] = os.open(path, flags, 0o644)
    if settings.logging.tensorboard:
      self._loggers.append(_TensorBoard(files))
    if settings.logging.wandb_project is not None:
      self._loggers.append(_WandB(files, settings))

  def step(self, step: int, values: Metrics) -> None:
    """Logs the numbers of a step.

    Args:
      values: by names such as rl/reward; scalars.
    """
    floats = {name: float(np.asarray(value)) for name, value in values.items()}
    finite = {k: v if math.isfinite(v) else str(v) for k, v in floats.items()}
    self._append(self._files.metrics, step, [finite])
    for logger in self._loggers:
      logger.step(step, floats)

  def completions(self, step: int, rows: Sequence[Record]) -> None:
    """Logs completions of a step.

    Args:
      rows: JSON, with prompt, completion, reward (None: could not be scored)
        and finish_reason at least.
    """
    self._append(self._files.completions, step, rows)
    for logger in self._loggers:
      logger.completions(step, rows)

  def answers(self, step: int, rows: Sequence[Record]) -> None:
    """Writes the answers to held-out questions; loggers get none of them."""
    self._append(self._files.answers, step, rows)

  def close(self) -> None:
    """Closes every file and logger."""
    for descriptor in self._open.values():
      os.close(descriptor)
    for logger in self._loggers:
      logger.close()

  def _append(
    self, path: pathlib.Path, step: int, rows: Sequence[Record]
  ) -> None:
    """Hands rows to the system at once: a kill loses none of them."""
    lines = (to_json({"step": step, **row}) + b"\n" for row in rows)
    if path not in self._open:
      return
    left = memoryview(b"".join(lines))
    # What is written to a file without a name is lost, and no error.
    if not os.path.samestat(os.stat(path), os.fstat(self._open[path])):
      raise FileNotFoundError(
        errno.ENOENT, "was replaced by another", str(path)
      )
    while left:
      left = left[os.write(self._open[path], left) :]

  def __enter__(self) -> "Writers":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


class _TensorBoard:
  def __init__(self, files: directory.RunDirectory) -> None:
    self._writer = importlib.import_module("tensorboardX").SummaryWriter(
      str(files.path / "tensorboard"),
      # Events after the restored step are of a run that was cut off.
      purge_step=max(by_step(files.metrics), default=-1) + 1,
    )

  def step(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)
    self._writer.flush()

  def completions(self, step: int, rows: Sequence[Record]) -> None:
    for number, row in enumerate(rows):
      # Four spaces make it code, so that no Markdown in it is obeyed.
      lines = to_json(row, indent=2).decode().split("\n")
      indented = "\n".join("    " + line for line in lines)
      self._writer.add_text(f"completions/{number}", indented, step)

  def close(self) -> None:
    self._writer.close()


class _WandB:
  def __init__(
    self, files: directory.RunDirectory, settings: config.Config
  ) -> None:
    self._wandb = importlib.import_module("wandb")
    # The run's name at W&B stays with its files, so that a resumed run goes on.
    name = files.path / "wandb_id"
    if not (settings.resume and name.exists()):
      name.write_text(uuid.uuid4().hex)
    self._run = self._wandb.init(
      project=settings.logging.wandb_project,
      name=files.path.name,
      id=name.read_text(),
      resume="allow",
      dir=str(files.path),
      config=config.to_dict(settings),
    )

  def step(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def completions(self, step: int, rows: Sequence[Record]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name) for name in columns] for row in rows]
    table = self._wandb.Table(columns=columns, data=cells)
    self._run.log({"completions": table}, step=step)

  def close(self) -> None:
    self._run.finish()
