"""A disk that fails midway ends a run at once, in one sentence."""

import contextlib
import errno
import os
import pathlib
import shutil
import time

import pytest

from bilevel_jax import errors, train
from bilevel_jax.training import checkpoint
from tests import processes, tiny_run

pytestmark = pytest.mark.usefixtures("programs_of_any_name")
_GOES_ON = (
  "; the checkpoint of step {} is complete: mend that, then continue with "
  "--config.resume=True"
)


@contextlib.contextmanager
def _no_new_directories(path: pathlib.Path):
  """A read-only file system: chmod does not bind root."""

  def refuse(made, *arguments, **named):
    if str(made).startswith(str(path)):
      raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(made))
    return mkdir(made, *arguments, **named)

  mkdir = os.mkdir
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(os, "mkdir", refuse)
    yield


def _until(directory, name, step):
  """A run that has done so many steps, and saved them."""
  steps = train.steps(tiny_run.parsed(directory, name))
  for done in steps:
    if done.number == step:
      while step not in checkpoint.complete(done.files.checkpoints):
        time.sleep(0.01)
      return steps
  raise AssertionError


def _assert_ends(steps, sentence, within_s=60):
  start = time.monotonic()
  with pytest.raises(train.CannotWrite) as stopped:
    list(steps)
  assert time.monotonic() - start < within_s
  assert str(stopped.value) == sentence


def _assert_resumes_as(directory, name, whole):
  train.run(tiny_run.parsed(directory, name, resume=True))
  assert tiny_run.logged(directory / name) == tiny_run.logged(whole)
  weights = "export/model.safetensors"
  read = [(run / weights).read_bytes() for run in (directory / name, whole)]
  assert read[0] == read[1]


@pytest.fixture(scope="module")
def whole(directory, programs_of_any_name):
  return train.run(tiny_run.parsed(directory, "whole")).files.path


@pytest.mark.parametrize("fault", ["removed", "moved", "replaced"])
def test_a_directory_that_goes_away_ends_the_run(directory, fault):
  """What was written to the files that are open would be lost."""
  steps = _until(directory, fault, 2)
  path = directory / fault
  if fault == "removed":
    shutil.rmtree(path)
  else:
    path.rename(directory / f"{fault} away")
  if fault == "replaced":
    path.mkdir()
    for name in ("metrics.jsonl", "completions.jsonl", "answers.jsonl"):
      (path / name).touch()
  why = os.strerror(errno.ENOENT)
  if fault == "replaced":
    why = "was replaced by another"
  _assert_ends(
    steps, f"{path}/completions.jsonl: {why}; {path} has no checkpoint"
  )


def test_a_full_disk_ends_the_run_and_a_resume_has_one_sentence(
  directory, whole
):
  """Checkpoints are the largest of its files."""
  steps = _until(directory, "full", 2)
  path = directory / "full"
  full = os.strerror(errno.EFBIG)
  with processes.files_of_at_most(25_000):
    _assert_ends(
      steps,
      f"a checkpoint cannot be written to {path}/checkpoints: {full}"
      + _GOES_ON.format(2),
    )
    with pytest.raises(errors.ConfigError) as refused:
      train.run(tiny_run.parsed(directory, "full", resume=True))
  assert str(refused.value) == (
    f"run_dir {path} must be a directory that can be written, got {full}"
  )
  _assert_resumes_as(directory, "full", whole)


def test_a_disk_that_is_full_to_the_last_byte_ends_the_run(directory, whole):
  """A line of a log is torn; a resume drops it."""
  steps = _until(directory, "torn", 3)
  log = directory / "torn" / "completions.jsonl"
  with processes.files_of_at_most(log.stat().st_size + 10):
    full = os.strerror(errno.EFBIG)
    why = f"[Errno {errno.EFBIG}] {full}"
    _assert_ends(steps, why + _GOES_ON.format(3))
  assert not log.read_bytes().endswith(b"\n")
  _assert_resumes_as(directory, "torn", whole)


def test_a_directory_that_becomes_read_only_ends_the_run(directory, whole):
  """The library would wait for five minutes."""
  steps = _until(directory, "read-only", 2)
  checkpoints = directory / "read-only" / "checkpoints"
  with _no_new_directories(checkpoints):
    _assert_ends(
      steps,
      f"a checkpoint cannot be written to {checkpoints}: "
      f"{os.strerror(errno.EROFS)}{_GOES_ON.format(2)}",
    )
  _assert_resumes_as(directory, "read-only", whole)


@pytest.mark.parametrize(
  "part", ["sources.export", "checkpoint.checksums.write"]
)
def test_an_export_and_checksums_that_do_not_fit_end_the_run(
  directory, whole, part
):
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")

  def fail(*_, **__):
    raise full

  with pytest.MonkeyPatch.context() as patch:
    steps = _until(directory, part, 3)
    patch.setattr(f"bilevel_jax.training.{part}", fail)
    if part == "sources.export":
      sentence = f"a file: {full.strerror}{_GOES_ON.format(4)}"
    else:
      where = directory / part / "checkpoints"
      sentence = f"a checkpoint cannot be written to {where}: {full.strerror}"
      sentence += _GOES_ON.format(3)
    _assert_ends(steps, sentence)
  _assert_resumes_as(directory, part, whole)
