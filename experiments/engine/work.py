"""Jobs of a study: each done once, several side by side, killed and resumed."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bilevel_jax import compile_cache, config, errors, train, types, weights
from bilevel_jax.data import corpora, tokenizer_files
from bilevel_jax.evaluation import scoring
from bilevel_jax.rewards import pool
from bilevel_jax.rollout import answers
from bilevel_jax.runs import finished, records
from bilevel_jax.weights import sampler
from experiments.engine import learned, pinned, plan

WATCHED = (
  "bilevel/cooperative_gain",
  "bilevel/cooperative_gain_se",
  "bilevel/rl_only_clip_fraction",
  "bilevel/direct_norm",
  "bilevel/implicit_norm",
  "bilevel/parts_cosine",
  "mix/sft_share",
)
LAST = ("bilevel/adapter_delta_norm", "bilevel/kl_to_rl_only", "sft/loss")
RESULT = "result.json"  # written last: the job is done
# Settings that a job may find changed: set here, or how devices are laid out.
_FREE = ("run_dir", "resume", "tokenizer.path", "mesh.")
_PREPARED = ("data.questions.", "data.demonstrations.")


def results(out: pathlib.Path, jobs: Sequence[plan.Job]) -> list[Any]:
  """Returns what each job found, None for one that is not done.

  Raises:
    ConfigError: one was done with other settings than it has now.
  """
  return [
    json.loads((out / job.path / RESULT).read_text())
    if done(out, job)
    else None
    for job in jobs
  ]


def take_over(out: pathlib.Path, known: pathlib.Path) -> None:
  """Writes the results of a study's JSON where a job has none yet.

  What a run left beside its result is not there: no report, no weights.

  Raises:
    ConfigError: it is not the JSON of a study.
  """
  try:
    whole = json.loads(known.read_text("utf-8"))
  except ValueError as error:
    raise errors.ConfigError(f"{known} is no results.json: {error}") from error
  for name, regime in whole["regimes"].items():
    for arm, given in regime["arms"].items():
      points = (given["search"] or {}).get("points", [])
      for path, found in (
        *((f"{arm}/seed-{seed}", run) for seed, run in given["runs"].items()),
        *((f"tuning/{arm}-{n}", point) for n, point in enumerate(points)),
      ):
        result = out / name / path / RESULT
        if not result.exists() and "settings" in found:
          result.parent.mkdir(parents=True, exist_ok=True)
          records.write_atomically(result, json.dumps(found))


def perform_all(
  out: pathlib.Path,
  study: plan.Study,
  jobs: Sequence[plan.Job],
  *,
  side_by_side: int,
  report: Callable[[str], None],
) -> None:
  """Does the jobs that are not done yet, several at once.

  Args:
    jobs: none of which needs another's result.
    side_by_side: processes, each with its share of the CPUs; with 1, this one.
    report: is told of each job that is done.
  """
  left = [job for job in jobs if not done(out, job)]
  if side_by_side == 1:
    for job in left:
      perform(out, study, job)
      report(job.path)
    return
  # References between settings cannot be sent; a job's are resolved.
  resolved = study.settings.copy_and_resolve_references()
  study = dataclasses.replace(study, settings=resolved, picture=None)
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(
    min(side_by_side, max(len(left), 1)),
    mp_context=context,
    initializer=_settle,
    initargs=(context.Value("i", 0), side_by_side),
  ) as workers:
    futures = {workers.submit(perform, out, study, job): job for job in left}
    try:
      for future in concurrent.futures.as_completed(futures):
        future.result()
        report(futures[future].path)
    except BaseException:
      workers.shutdown(wait=True, cancel_futures=True)
      raise


def perform(out: pathlib.Path, study: plan.Study, job: plan.Job) -> None:
  """Trains, scores the tests and writes the result, or goes on with that.

  Raises:
    TrainingStopped: terminated; the run goes on from there the next time.
  """
  directory = out / job.path
  settings: Any = job.settings.copy_and_resolve_references()
  settings.run_dir = str(directory)
  if job.start is not None:
    settings.model.preset = None
    settings.model.weights = str(out / job.start / "export")
    settings.tokenizer.path = None
  elif settings.model.weights is None and settings.tokenizer.path is None:
    characters = out / "tokenizer"
    tokenizer_files.character_tokenizer(characters)
    settings.tokenizer.path = str(characters)
  if job.prepare is not None:
    files = directory.with_name(f"{directory.name}-data")
    files.mkdir(parents=True, exist_ok=True)
    job.prepare(settings, files, out / job.after if job.after else None)
  parsed = config.parse(settings)
  if job.train:
    _train(directory, parsed)
  found: dict[str, Any] = {"seed": parsed.seed, "settings": fingerprint(job)}
  if job.train:
    found |= _spent(finished.read_run(directory))
    if weights_of := learned.weights(directory, study.good):
      found["weights"] = weights_of
    export = directory / "export"
  else:
    export = pathlib.Path(str(parsed.model.weights))
  if job.tested:
    found["tests"] = _tests(export, parsed, study, job.sampled)
  directory.mkdir(parents=True, exist_ok=True)
  # The weights that count are exported.
  shutil.rmtree(directory / "checkpoints", ignore_errors=True)
  records.write_atomically(directory / RESULT, json.dumps(found))
  jax.clear_caches()  # learning rates are compiled in: no run needs another's


def done(out: pathlib.Path, job: plan.Job) -> bool:
  """Returns whether a job has its result.

  Raises:
    ConfigError: it was done with other settings than it has now.
  """
  path = out / job.path
  if not (path / RESULT).exists():
    return False
  then = json.loads((path / RESULT).read_text("utf-8"))["settings"]
  if job.train and then != fingerprint(job):
    differ = ""
    if (path / "config.json").exists():
      now = _own_settings(config.to_dict(config.parse(job.settings)), job)
      was = _own_settings(finished.read_settings(path), job)
      name = min(n for n in {*was, *now} if was.get(n) != now.get(n))
      differ = f" ({name})"
    raise errors.ConfigError(
      f"{path} was done with other settings than the study now has{differ}: "
      "name another --out"
    )
  return True


def fingerprint(job: plan.Job) -> str:
  """Returns a hash of a job's settings that are not the pinned ones.

  Those that it may find changed are left out.
  """
  settings = config.to_dict(config.parse(job.settings))
  text = json.dumps(_own_settings(settings, job), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _own_settings(settings: Any, job: plan.Job) -> dict[str, Any]:
  free = _FREE if job.start is None else (*_FREE, "model.")
  free += _PREPARED if job.prepare is not None else ()
  defaults = pinned.defaults()
  here = str(pathlib.Path(__file__).parents[2])  # wherever that is
  text = json.dumps(settings).replace(json.dumps(here)[1:-1], "")
  flat = dict(config.flat(json.loads(text)))
  return {
    name: value
    for name, value in flat.items()
    if not name.startswith(free) and defaults.get(name) != value
  }


def _settle(places: Any, side_by_side: int) -> None:
  """Gives a worker its CPUs, kept programs, and an end with its parent."""
  compile_cache.enable()
  with places.get_lock():
    place = places.value
    places.value += 1
  if hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    own = cores[place % side_by_side :: side_by_side]
    os.sched_setaffinity(0, own or cores)

  def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
      parent.join()
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _train(directory: pathlib.Path, settings: config.Config) -> None:
  if (directory / "report.html").exists():  # what a run writes last
    return
  logged = records.read_records(directory / "metrics.jsonl")
  if logged and not (directory / "checkpoints").exists():
    shutil.rmtree(directory)  # killed before anything of it was saved
  elif logged and logged[-1]["step"] >= settings.steps:
    shutil.rmtree(directory)  # killed after its last step
  resume = directory.exists()
  directory.mkdir(parents=True, exist_ok=True)
  settings = config.parse(config.to_dict(settings) | {"resume": resume})
  with (
    (directory / "log.txt").open("a", encoding="utf-8") as log,
    contextlib.redirect_stdout(log),
  ):
    train.run(settings)


def _spent(run: finished.FinishedRun) -> dict[str, Any]:
  """Returns what the run cost, and its accuracy on the way."""
  x, accuracy = run.curve("evaluation/accuracy", "steps")
  costs = {name: run.curve("evaluation/accuracy", name)[0] for name in run.cost}
  del costs["steps"]
  last = list(run.steps.values())[-1]
  watched = {name: run.curve(name, "steps")[1] for name in WATCHED}
  return {
    "steps": int(last["step"]),
    "spent": {
      **{name: float(spent[-1]) for name, spent in run.cost.items()},
      "demonstrations": demonstrations_seen(run),
    },
    "validation": float(accuracy[-1]) if len(accuracy) else None,
    "curve": {
      "steps": x.tolist(),
      "accuracy": accuracy.tolist(),
      **{name: spent.tolist() for name, spent in costs.items()},
    },
    "means": {n: float(y.mean()) for n, y in watched.items() if len(y)},
    "last": {n: run.last(n) for n in LAST if not math.isnan(run.last(n))},
  }


def demonstrations_seen(run: finished.FinishedRun) -> float:
  """Returns how many a run learned from, one that came again counted again.

  Of a method without an SFT loss, those that samples began with a part of.
  """
  steps = list(run.steps.values())
  if any("sft/demonstrations" in logged for logged in steps):
    return sum(logged.get("sft/demonstrations", 0.0) for logged in steps)
  asked = run.settings["data.prompts_per_step"]
  return asked * sum(
    logged.get("mix/demonstrated_questions", 0.0) for logged in steps
  )


def _tests(
  export: pathlib.Path,
  settings: config.Config,
  study: plan.Study,
  sampled: bool,
) -> dict[str, Any]:
  """Returns, for each test, the greedy answers that are right, as 0 and 1.

  Args:
    sampled: whether pass rates of sampled answers are wanted, too.
  """
  opened = weights.open(str(export))
  prompt_format = sampler.prompt_format(opened, settings.tokenizer)
  model = sampler.build(opened, sampler.read_tokenizer(opened, prompt_format))
  found = {}
  with pool.Scorer(
    {study.verifier: 1.0},
    deadline_s=settings.reward.deadline_s,
    workers=settings.reward.workers,
  ) as scorer:
    for name, source in study.tests.items():
      questions = corpora.load(source)
      answered = _answers(model, scorer, questions, study.test_tokens)
      right = answered.scores.correct & answered.scores.scored
      lengths = answered.rollout.lengths
      found[name] = {
        "accuracy": list(scoring.accuracy(right)),
        "right": "".join(str(int(r)) for r in right),
        "tokens": float(lengths.mean()),
        "lengths": " ".join(map(str, lengths)),
      }
      if sampled:
        samples = study.pass_rate_samples
        answered = _answers(
          model, scorer, questions, study.test_tokens, samples, 1.0
        )
        right = answered.scores.correct & answered.scores.scored
        counts = right.reshape(-1, samples).sum(axis=1)
        found[name]["right_of_samples"] = " ".join(map(str, counts))
  return found


def _answers(
  model: sampler.Sampler,
  scorer: pool.Scorer,
  questions: list[types.Question],
  longest: int,
  samples: int = 1,
  temperature: float = 0.0,
) -> answers.Answers:
  return answers.answer(
    model.policy,
    model.weights,
    questions,
    types.Requests(
      prompts=[model.tokenizer.prompt_tokens(q) for q in questions],
      prompt_ids=np.arange(len(questions)),
      samples_per_prompt=samples,
      max_new_tokens=longest,
      eos_ids=model.tokenizer.eos_ids,
      sampling=types.Sampling(temperature=temperature),
      key=jax.random.key(0),
    ),
    model.tokenizer,
    scorer,
    max_rows=1024,
  )
