"""One training run: step, log, save, evaluate, until the last step."""

import collections
import dataclasses
import functools
import json
import signal
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from bilevel_jax import command_line, config, processes
from bilevel_jax.evaluation import benchmarks
from bilevel_jax.random_streams import Stream
from bilevel_jax.reporting import run_report, terminal
from bilevel_jax.rollout import answers
from bilevel_jax.runs import directory as run_directory
from bilevel_jax.runs import given_rows, reward_failures
from bilevel_jax.runs.writers import Writers
from bilevel_jax.training import (
  checkpoint,
  profiler,
  ranking,
  sources,
  termination,
)
from bilevel_jax.training import run as run_lib
from bilevel_jax.training import step as step_lib
from bilevel_jax.weights import sampler

TrainingStopped = termination.TrainingStopped
Interrupted = termination.Interrupted


class CannotWrite(TrainingStopped):
  """The run's files cannot be written, in one process at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """What a step of a run did."""

  number: int
  """Steps done, this one included."""
  metrics: Mapping[str, float]
  """The step's line of metrics.jsonl, by names such as rl/reward."""
  completions: Sequence[Mapping[str, Any]]
  """All that was sampled, each with the fields of completions.jsonl."""
  before: benchmarks.Result | None
  """Accuracy on the held-out questions before the first step."""
  after: benchmarks.Result | None
  """Accuracy on them after this step, where it was measured."""
  files: run_directory.RunDirectory
  """Where the run leaves its files."""
  run: run_lib.Run
  """What the run is made of. It moves on: its state is that of now, whose
  arrays the next step gives up."""

  def model(self) -> sampler.Sampler:
    """Returns the policy as it is now, ready for `generate.complete`."""
    found = self.run.model
    return sampler.Sampler(
      found.architecture, found.policy, self.run.weights(), found.tokenizer
    )


def run(
  settings: config.Config | Mapping[str, Any], **given: given_rows.Rows | None
) -> Step:
  """Trains as the settings say, shows it, and returns the last step.

  Args:
    settings: as `config.parse` returns or takes them.
    **given: questions, demonstrations, evaluation, as `steps` takes them.

  Raises:
    ConfigError: something in the settings cannot be used; nothing was done.
    Interrupted: Ctrl-C ended it.
    TrainingStopped: SIGTERM did, there is no step left to do, updates stay
      non-finite, or files cannot be written.
  """
  # What goes on after the last step is already done when it is handed out.
  taken = steps(settings, shown=True, **given)
  return collections.deque(taken, maxlen=1).pop()


def steps(
  settings: config.Config | Mapping[str, Any],
  *,
  questions: given_rows.Rows | None = None,
  demonstrations: given_rows.Rows | None = None,
  evaluation: given_rows.Rows | None = None,
  shown: bool = False,
) -> Generator[Step, None, None]:
  """Yields each step of a run once it is done and logged.

  Before the last step is handed out, the weights are exported and the report
  is written. A loop that is broken off, or `close`, saves the last step: the
  run can be resumed. Several processes must all break off at one step.

  Args:
    settings: as `config.parse` returns or takes them.
    questions: rows of any form (docs/how_to/own_data.md), a list or a
      datasets.Dataset, in place of the settings' source; the run keeps them.
    demonstrations: rows to learn from, in the same way.
    evaluation: rows that are held out, in the same way.
    shown: whether the run is shown on the screen, as `run` shows it.

  Raises:
    ConfigError: as `run`, when the first step is asked for.
    Interrupted: as `run`, if it is shown.
    TrainingStopped: as `run`.
    CannotWrite: a file of the run cannot be written; a TrainingStopped.
  """
  given = {
    "questions": questions,
    "demonstrations": demonstrations,
    "evaluation": evaluation,
  }
  settings = given_rows.named(settings, given)
  # Said in the run's config.json: a run that goes on elsewhere keeps it.
  model = dataclasses.replace(
    settings.model, compute_dtype=settings.model.dtype
  )
  settings = dataclasses.replace(settings, model=model)
  try:
    yield from _steps(settings, given, shown)
  except OSError as error:
    saved = checkpoint.complete(
      run_directory.RunDirectory(settings.run_dir).checkpoints
    )
    safe = f"{settings.run_dir} has no checkpoint"
    if saved:
      safe = (
        f"the checkpoint of step {saved[-1]} is complete: mend that, then "
        "continue with --config.resume=True"
      )
    raise CannotWrite(f"{command_line.sentence(error)}; {safe}") from error


def _steps(
  settings: config.Config,
  given: Mapping[str, given_rows.Rows | None],
  shown: bool,
) -> Generator[Step, None, None]:
  processes.check_same(
    "the settings", json.dumps(config.to_dict(settings)).encode()
  )
  directory = run_directory.prepare(settings.run_dir, settings, settings.resume)
  silent = not processes.is_first()
  with (
    run_directory.claimed(directory.path, "run_dir"),
    run_lib.build_scorer(settings) as scorer,
  ):
    processes.on_first(lambda: given_rows.keep(directory.path, given))
    run = run_lib.gather(directory.dated(settings), scorer)
    settings = run.settings if run.model.tokenizer.date else settings
    notes: list[str] = []
    checkpoints = checkpoint.Checkpoints(
      directory.checkpoints,
      keep_last=settings.checkpoints.keep_last,
      keep_best=settings.checkpoints.keep_best,
      warn=notes.append,
    )
    with processes.together():
      first = run_lib.resume(run, checkpoints) if settings.resume else 0
      if settings.resume and not first:
        notes.append("no checkpoint is there yet: the run starts again")
      over = run_lib.over(run, first)
      if over and directory.report.exists():
        raise TrainingStopped(f"nothing to train: {over}")
    processes.on_first(
      lambda: directory.start(settings, first, scorer.isolation)
    )
    with (
      checkpoints,
      Writers(directory, settings, silent=silent) as writers,
      terminal.Display(
        settings.steps, first, settings.logging, silent=silent or not shown
      ) as screen,
      termination.Requested(interrupts=shown) as asked_to_end,
      profiler.Profiler(
        () if silent else settings.logging.profile_steps,
        directory.path / "profile",
      ) as profile,
    ):

      def step_of(number, metrics, sampled, before, after):
        completions = answers.records(sampled) if sampled else []
        return Step(
          number=number,
          metrics=metrics,
          completions=completions,
          before=before,
          after=after,
          files=directory,
          run=run,
        )

      for note in (run_lib.opening(run), *run_lib.changed_code(run), *notes):
        screen.note(note)
      before = None
      if first == 0:
        before = _evaluate(run, 0, directory, writers, screen)
        writers.step(0, before.metrics() if before else {})
      elif run.streams.held_out is not None:
        before = benchmarks.Result.from_metrics(directory.logged_at(0))
      if over:  # it ended after its last step and before its report
        logged = directory.logged_at(first)
        if "evaluation/correct" in logged:
          after = benchmarks.Result.from_metrics(logged)
        else:  # it was to have more steps then
          after = _evaluate(run, first, directory, writers, screen)
        _finish(run, directory, screen, before, after)
        yield step_of(first, logged, None, before, after)
        return
      for done in range(first + 1, settings.steps + 1):
        profile.before(done)
        taken = step_lib.run_step(run, done - 1)
        profile.after(done)
        _log_completions(run, done, taken, writers, screen)
        _log_failures(run, done, directory, screen)
        screen.step(done, taken.metrics)
        end = done if run_lib.spent(run) else settings.steps
        after = None
        if run_lib.due(settings.evaluation.every, done, end):
          after = _evaluate(run, done, directory, writers, screen)
        logged = taken.metrics | (after.metrics() if after else {})
        writers.step(done, logged)
        _stop_if_non_finite(run, done)
        _stop_if_unscored(run, done, taken, directory)
        save = functools.partial(
          checkpoints.save,
          done,
          run.state,
          run.host,
          accuracy=None if after is None else after.accuracy,
        )
        terminated = processes.any_of(bool(asked_to_end))
        if terminated or run_lib.due(settings.checkpoints.every, done, end):
          save()
        if done == end:
          checkpoints.wait()
          _finish(run, directory, screen, before, after)
        try:
          yield step_of(done, logged, taken.answers, before, after)
        except GeneratorExit:
          save()  # nothing happens where this step is saved already
          raise
        if done == end:
          return
        if terminated:
          words = (
            f"after step {done} of {settings.steps}, which is saved: continue "
            "with --config.resume=True"
          )
          if processes.any_of(asked_to_end.by == signal.SIGINT):
            raise Interrupted(f"Ctrl-C {words}")
          raise TrainingStopped(f"SIGTERM {words}")


def _log_completions(
  run: run_lib.Run,
  done: int,
  taken: step_lib.StepResult,
  writers: Writers,
  screen: terminal.Display,
) -> None:
  """Writes some of the step's completions, and now and then shows them."""
  if taken.answers is None:
    return
  logging = run.settings.logging
  rows = answers.records(taken.answers, logging.completions_per_step)
  writers.completions(done, rows)
  if run_lib.due(logging.show_every, done, run.settings.steps):
    screen.completions(done, rows)


def _finish(
  run: run_lib.Run,
  directory: run_directory.RunDirectory,
  screen: terminal.Display,
  before: benchmarks.Result | None,
  after: benchmarks.Result | None,
) -> None:
  """Exports the weights, writes the report, and says what came of it."""
  if run.settings.checkpoints.export:
    screen.note(f"exporting weights to {directory.export}")
    sources.export(
      directory.export, run.settings, run.model, run.state, run.frozen
    )
  ranking.write(run, directory)
  processes.on_first(lambda: run_report.write_report(directory.path))
  screen.closing(before, after, directory.path)


def _evaluate(
  run: run_lib.Run,
  step: int,
  directory: run_directory.RunDirectory,
  writers: Writers,
  screen: terminal.Display,
) -> benchmarks.Result | None:
  """Returns and shows the accuracy on the held-out questions, if any."""
  settings = run.settings
  if run.streams.held_out is None:
    return None
  screen.note(f"evaluating on {len(run.streams.held_out)} questions")
  result, records = benchmarks.evaluate(
    run.model.policy,
    run.weights(),
    run.streams.held_out,
    run.model.tokenizer,
    run.scorer,
    eos_ids=run.model.tokenizer.eos_ids,
    max_new_tokens=settings.evaluation.max_new_tokens
    or settings.rollout.max_new_tokens,
    temperature=settings.evaluation.temperature,
    max_rows=settings.rollout.max_rows,
    stop=settings.rollout.stop,
    cache_bytes=run.cache_bytes,
    key=Stream.EVALUATION.key(settings.seed, step),
    sharding=run.rows,
  )
  writers.answers(step, records)
  _log_failures(run, step, directory, screen, "evaluation")
  screen.evaluation(step, result)
  return result


def _stop_if_non_finite(run: run_lib.Run, done: int) -> None:
  limit = run.settings.training.max_skipped_in_a_row
  if int(run.state.skipped_in_a_row) >= limit:
    raise TrainingStopped(
      f"step {done}: {limit} updates in a row had a non-finite loss "
      "or gradient and were skipped"
    )


def _log_failures(
  run: run_lib.Run,
  done: int,
  directory: run_directory.RunDirectory,
  screen: terminal.Display,
  during: str = "",
) -> None:
  """Writes why completions could not be scored; shows the run's first one."""
  mine = reward_failures.render(done, run.scorer.take_failures(), during)
  found = [text.rstrip() for text in processes.texts(mine) if text]
  if not found or not processes.is_first():
    return
  entries = "\n".join([*found, ""])
  path = directory.reward_failures
  if not path.exists():
    first = entries.split("\nstep ")[0].splitlines()
    screen.note(
      "a reward failed, and its completion is left out (more of them: "
      f"{path})\n" + "\n".join(f"{line:.300}" for line in first)
    )
  reward_failures.append(path, entries)


def _stop_if_unscored(
  run: run_lib.Run,
  done: int,
  taken: step_lib.StepResult,
  directory: run_directory.RunDirectory,
) -> None:
  if taken.answers is None:
    return
  host = run.host
  limit = min(run.settings.reward.max_unscored_steps, run.settings.steps)
  in_a_row = host.get("unscored_steps", 0) + 1
  host["unscored_steps"] = 0 if taken.answers.scores.scored.any() else in_a_row
  if host["unscored_steps"] >= limit:
    raise TrainingStopped(
      f"step {done}: no completion of the last {limit} steps could "
      f"be scored, so that nothing was learned; {directory.reward_failures} "
      "says why"
    )
