"""Kills a small run at random moments, resumes it, and compares its end.

  python -m tests.kill_campaign --kills 100

It must end with the bits of a run that nothing disturbed, whatever it was
killed in: a step, a save, the export or the report.
"""

import argparse
import collections
import dataclasses
import multiprocessing
import os
import pathlib
import random
import sys
import tempfile
import time

import jax

from bilevel_jax import config, train
from tests import processes, tiny_run

STEPS = 6
KILLS_A_RUN = 5
# What a run is killed in -> files that are there then, and the longest wait
# from the first of them on, in seconds.
MOMENTS = {
  "step": ("metrics.jsonl", 0.2),
  "save": ("checkpoints/*-tmp", 0.1),
  "export": ("export", 0.05),
  "report": ("export/config.json", 0.1),
}
_PRELOADED = (
  "bilevel_jax.main",
  "matplotlib.backends.backend_svg",
  "tests.tiny_run",
)
_COMPARED = ("metrics.jsonl", "completions.jsonl", "export/*", "export/*/*")


@dataclasses.dataclass
class Campaign:
  """What came of it."""

  kills: collections.Counter[str]
  """By what the run was killed in."""
  runs: int
  differences: list[str]
  """A line for each file that is not that of the undisturbed run."""


def run(directory: pathlib.Path, kills: int, seed: int = 0) -> Campaign:
  """Returns what came of so many kills.

  Args:
    directory: an empty one.
  """
  # Its processes have all modules from the first one, which starts no device.
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(list(_PRELOADED))
  tiny_run.weights(directory)

  def start(name: str, resume: bool):
    process = context.Process(target=_train, args=(directory, name, resume))
    process.start()
    return process

  def finish(name: str, resume: bool) -> None:
    process = start(name, resume)
    process.join(processes.PATIENCE_S)
    assert process.exitcode == 0, (directory / name / "said").read_text()

  finish("whole", resume=False)
  chance, done = random.Random(seed), Campaign(collections.Counter(), 0, [])
  while done.kills.total() < kills:
    name, done.runs = f"run{done.runs}", done.runs + 1
    path = directory / name
    for _ in range(min(KILLS_A_RUN, kills - done.kills.total())):
      process = start(name, resume=(path / "config.json").exists())
      moment = _killed(process, path, chance)
      if moment is None:
        break  # it was quicker
      done.kills[moment] += 1
    else:
      finish(name, resume=(path / "config.json").exists())
    done.differences += _differences(directory / "whole", path)
  return done


def _train(directory: pathlib.Path, name: str, resume: bool) -> None:
  (directory / name).mkdir(exist_ok=True)
  said = os.open(directory / name / "said", os.O_CREAT | os.O_WRONLY)
  os.dup2(said, 1)
  os.dup2(said, 2)
  jax.config.update("jax_compilation_cache_dir", str(directory / "cache"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  c = tiny_run.settings(directory, name)
  c.steps, c.resume = STEPS, resume
  c.method.name = "grpo"
  c.data.evaluation.task = c.data.evaluation.count = None
  c.data.evaluation.task_options = {}
  try:
    train.run(config.parse(c))
  except train.TrainingStopped as stopped:
    if "nothing to train" not in str(stopped):  # it was killed after its end
      raise


def _killed(process, path, chance: random.Random) -> str | None:
  """Waits for a moment; returns what the run was killed in, if it was."""
  moment = chance.choice(list(MOMENTS))
  pattern, wait_s = MOMENTS[moment]
  before = _seen(path, pattern)
  while _seen(path, pattern) == before and process.exitcode is None:
    time.sleep(0.001)
  time.sleep(chance.uniform(0, wait_s))
  process.kill()
  process.join()
  assert process.exitcode in (0, -9), (path / "said").read_text()
  return moment if process.exitcode else None


def _seen(path: pathlib.Path, pattern: str) -> list[tuple[str, int]]:
  found = []
  for file in path.glob(pattern):
    try:
      found.append((str(file), file.stat().st_mtime_ns))
    except FileNotFoundError:
      continue
  return sorted(found)


def _differences(whole: pathlib.Path, killed: pathlib.Path) -> list[str]:
  def files(run_dir: pathlib.Path) -> dict[str, object]:
    found = {
      path.relative_to(run_dir).as_posix(): path
      for pattern in _COMPARED
      for path in run_dir.glob(pattern)
      if path.is_file()
    }
    return {
      name: tiny_run.logged(run_dir, name)
      if path.suffix == ".jsonl"
      else path.read_bytes()
      for name, path in found.items()
    }

  wanted, got = files(whole), files(killed)
  lines = [
    f"{killed}: {name} is not that of {whole}"
    for name in sorted(wanted.keys() | got.keys())
    if wanted.get(name) != got.get(name)
  ]
  if not (killed / "report.html").exists():
    lines.append(f"{killed}: there is no report.html")
  left = [p for p in killed.rglob("*") if p.name.endswith((".tmp", "-tmp"))]
  return lines + [f"{killed}: {path.name} is left over" for path in left]


def main() -> int:
  """Returns 0 where no bit is another one."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    done = run(pathlib.Path(directory), options.kills, options.seed)
  print("\n".join(done.differences))
  by_moment = ", ".join(f"{n} in {what}" for what, n in done.kills.items())
  print(
    f"{done.kills.total()} kills ({by_moment}) of {done.runs} runs; "
    f"{len(done.differences)} differences"
  )
  return 1 if done.differences else 0


if __name__ == "__main__":
  sys.exit(main())
