"""Numbers and completions of every step, to files and to loggers."""

import importlib
import json
import math
import os
import pathlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from bilevel_jax import config, errors
from bilevel_jax.data import json_lines
from bilevel_jax.types import Metrics

Record = Mapping[str, Any]


class Files(Protocol):
  """Where a run's files are; a RunDirectory."""

  @property
  def path(self) -> pathlib.Path:
    """The run directory."""
    ...

  @property
  def metrics(self) -> pathlib.Path:
    """Numbers, a JSON line a step."""
    ...

  @property
  def completions(self) -> pathlib.Path:
    """Samples with their rewards, a JSON line each."""
    ...

  @property
  def answers(self) -> pathlib.Path:
    """Answers to the held-out questions, a JSON line each."""
    ...


class Writer(Protocol):
  """Takes what a step has logged."""

  def step(self, step: int, values: Mapping[str, float]) -> None:
    """Takes the numbers of a step."""
    ...

  def completions(self, step: int, records: Sequence[Record]) -> None:
    """Takes completions of a step."""
    ...

  def close(self) -> None:
    """Ends the writing."""
    ...


class Writers:
  """Everything that a run logs to, as one; a context."""

  def __init__(
    self, files: Files, settings: config.Config, *, silent: bool = False
  ) -> None:
    """Opens the files of JSON lines, and what the settings ask for.

    Args:
      settings: of the run; `logging` says what, the rest goes to W&B.
      silent: whether to open nothing and log nothing.

    Raises:
      ConfigError: a logger is asked for and not installed.
    """
    self._writers: list[Writer] = []
    self._lines: _Lines | None = None
    if silent:
      return
    check_installed(settings.logging)
    self._lines = _Lines(files)
    if settings.logging.tensorboard:
      self._writers.append(_TensorBoard(files))
    if settings.logging.wandb_project is not None:
      self._writers.append(_WandB(files, settings))
    self._writers.insert(0, self._lines)

  def step(self, step: int, values: Metrics) -> None:
    """Logs the numbers of a step.

    Args:
      values: by names such as rl/reward; scalars.
    """
    floats = {name: float(np.asarray(value)) for name, value in values.items()}
    for writer in self._writers:
      writer.step(step, floats)

  def completions(self, step: int, records: Sequence[Record]) -> None:
    """Logs completions of a step.

    Args:
      records: JSON, with prompt, completion, reward (None: could not be
        scored) and finish_reason at least.
    """
    for writer in self._writers:
      writer.completions(step, records)

  def answers(self, step: int, records: Sequence[Record]) -> None:
    """Writes the answers to held-out questions; loggers get none of them."""
    if self._lines is not None:
      self._lines.answers(step, records)

  def close(self) -> None:
    """Closes every file and logger."""
    for writer in self._writers:
      writer.close()

  def __enter__(self) -> "Writers":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def check_installed(settings: config.Logging) -> None:
  """Returns when every logger that is asked for can be imported.

  Raises:
    ConfigError: a logger is not installed.
  """
  loggers = (
    ("tensorboard", settings.tensorboard, "tensorboardX", "tensorboard"),
    ("wandb_project", settings.wandb_project is not None, "wandb", "wandb"),
  )
  for field, wanted, package, extra in loggers:
    try:
      if wanted:
        importlib.import_module(package)
    except ImportError:
      raise errors.ConfigError(
        f"logging.{field} needs the package {package}, which is not "
        f"installed: pip install 'bilevel_jax[{extra}]'"
      ) from None


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the records of a file of JSON lines; [] where there is none.

  A last line that was torn by a kill is left out, and "nan", "inf" and "-inf"
  in metrics are numbers again.

  Raises:
    ConfigError: another line is no JSON object.
  """
  return [record for _, record in _lines(path)]


def truncate(path: pathlib.Path, step: int) -> None:
  """Drops the lines after a step, and a torn last line.

  Args:
    path: of JSON lines, as for `read`; nothing happens without it.
    step: the last step whose lines are kept.
  """
  if not path.exists():
    return
  kept = [line for line, record in _lines(path) if record["step"] <= step]
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_bytes(b"".join(kept))
  temporary.replace(path)


def _lines(path: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
  return [
    (line, {k: _number(k, v) for k, v in record.items()})
    for line, record in json_lines.whole(path)
  ]


_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _number(name: str, value: Any) -> Any:
  # Names of metrics have a slash; those of a completion's texts have none.
  if "/" in name and isinstance(value, str):
    return _NOT_FINITE[value]
  return value


def _json(record: Record, indent: int | None = None) -> bytes:
  text = json.dumps(record, allow_nan=False, ensure_ascii=False, indent=indent)
  # Half a surrogate pair has no UTF-8; backslashed it is JSON's own escape.
  return text.encode("utf-8", errors="backslashreplace")


class _Lines:
  """JSON lines. Each goes to the system as one write: a kill loses nothing."""

  def __init__(self, files: Files) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    self._metrics = os.open(files.metrics, flags, 0o644)
    self._completions = os.open(files.completions, flags, 0o644)
    self._answers = os.open(files.answers, flags, 0o644)

  def step(self, step: int, values: Mapping[str, float]) -> None:
    finite = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
    _write(self._metrics, _json({"step": step, **finite}) + b"\n")

  def completions(self, step: int, records: Sequence[Record]) -> None:
    _write_records(self._completions, step, records)

  def answers(self, step: int, records: Sequence[Record]) -> None:
    _write_records(self._answers, step, records)

  def close(self) -> None:
    for descriptor in (self._metrics, self._completions, self._answers):
      os.close(descriptor)


def _write_records(
  descriptor: int, step: int, records: Sequence[Record]
) -> None:
  lines = (_json({"step": step, **record}) + b"\n" for record in records)
  _write(descriptor, b"".join(lines))


def _write(descriptor: int, data: bytes) -> None:
  view = memoryview(data)
  while view:
    view = view[os.write(descriptor, view) :]


class _TensorBoard:
  def __init__(self, files: Files) -> None:
    self._writer = importlib.import_module("tensorboardX").SummaryWriter(
      str(files.path / "tensorboard"),
      # Events after the restored step are of a run that was cut off.
      purge_step=_last_step(files) + 1,
    )

  def step(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)
    self._writer.flush()

  def completions(self, step: int, records: Sequence[Record]) -> None:
    for number, record in enumerate(records):
      # Four spaces make it code, so that no Markdown in it is obeyed.
      lines = _json(record, indent=2).decode().split("\n")
      indented = "\n".join("    " + line for line in lines)
      self._writer.add_text(f"completions/{number}", indented, step)

  def close(self) -> None:
    self._writer.close()


class _WandB:
  def __init__(self, files: Files, settings: config.Config) -> None:
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

  def completions(self, step: int, records: Sequence[Record]) -> None:
    columns = _columns(records)
    rows = [[record.get(name) for name in columns] for record in records]
    table = self._wandb.Table(columns=columns, data=rows)
    self._run.log({"completions": table}, step=step)

  def close(self) -> None:
    self._run.finish()


def _columns(records: Iterable[Record]) -> list[str]:
  return list(dict.fromkeys(name for record in records for name in record))


def _last_step(files: Files) -> int:
  return max((record["step"] for record in read(files.metrics)), default=-1)
