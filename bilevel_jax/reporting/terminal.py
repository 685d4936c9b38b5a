"""What a person sees of a run: a live line, samples, and a closing table."""

import collections
import importlib
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.panel
import rich.progress
import rich.table
import rich.text

from bilevel_jax import command_line, config
from bilevel_jax.evaluation.benchmarks import Result
from bilevel_jax.reporting import demonstrations, held_out, text

# (heading, metric, format) of what a step shows, where it is logged.
_COLUMNS = (
  ("reward", "rl/reward", "{:.3f}"),
  ("SFT", "sft/loss", "{:.3f}"),
  ("SFT share", "mix/sft_share", "{:.2f}"),
  ("gain", "bilevel/cooperative_gain", "{:+.4f}"),
  ("tok/s", "time/rollout_tokens_per_s", "{:,.0f}"),
)
_PAIRS = 2  # questions whose two answers the end shows
_RECENT = 20  # steps that the time left is estimated from


class Display:
  """Shows a run on a terminal, in a notebook, or as plain lines; a context."""

  def __init__(
    self,
    steps: int,
    first: int,
    settings: config.Logging,
    *,
    silent: bool = False,
    console: rich.console.Console | None = None,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    """Makes the display; entering it starts the clock."""
    self._steps, self._first, self._clock = steps, first, clock
    self._console = console or _Console(highlight=False, quiet=silent)
    shown = settings.progress and not silent
    self._live = shown and self._console.is_terminal
    self._line = None
    if shown and self._console.is_jupyter:
      self._line = NotebookOutput()
    self._times: collections.deque[tuple[int, float]] = collections.deque(
      maxlen=_RECENT + 1
    )
    whole = rich.table.Column(no_wrap=True)
    self._progress = rich.progress.Progress(
      rich.progress.TextColumn(
        "step {task.completed}/{task.total}", table_column=whole
      ),
      # The bar takes what the words leave.
      rich.progress.BarColumn(
        bar_width=None, table_column=rich.table.Column(ratio=1, max_width=40)
      ),
      rich.progress.TextColumn("{task.description}", table_column=whole),
      expand=True,
      console=self._console,
      disable=not self._live,
      transient=True,
    )
    self._task = self._progress.add_task(
      "starting", total=steps, completed=first
    )

  def __enter__(self) -> "Display":
    self._times.append((self._first, self._clock()))
    self._progress.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._progress.stop()

  def note(self, words: str) -> None:
    """Shows a few words, as they are."""
    self._print(_plain(words))

  def step(self, step: int, values: Mapping[str, float]) -> None:
    """Shows where the run is: a live line, or one more plain line."""
    self._times.append((step, self._clock()))
    parts = [
      f"{heading} {form.format(float(values[name]))}"
      for heading, name, form in _COLUMNS
      if name in values
    ]
    if unscored := values.get("rl/unscorable"):
      parts.append(f"{unscored:.0f} not scored")
    if values.get("training/skipped_updates"):
      parts.append("update skipped: not finite")
    (before, then), (now, at) = self._times[0], self._times[-1]
    if now > before:
      left = (at - then) / (now - before) * (self._steps - now)
      parts.append(f"{_duration(left)} left")
    line = "  ".join(parts)
    if self._live:
      self._progress.update(self._task, completed=step, description=line)
      return
    width = len(str(self._steps))
    line = f"step {step:>{width}}/{self._steps}  {line}"
    if self._line is not None:
      self._line.write({"text/plain": line})
    else:
      self.note(line)

  def evaluation(self, step: int, result: Result) -> None:
    """Shows an accuracy."""
    self.note(
      f"accuracy after step {step}: {result.accuracy:.1%} ({result.correct} of "
      f"{result.questions}, 95% interval {text.interval(*result.interval)})"
    )

  def completions(
    self, step: int, records: Sequence[Mapping[str, Any]]
  ) -> None:
    """Shows completions with their rewards.

    Args:
      records: with prompt, completion, reward and finish_reason; answer too.
    """
    for record in records:
      body = _texts(
        (heading, record[heading])
        for heading in ("prompt", "completion", "answer")
        if record.get(heading) is not None
      )
      worth, good = text.verdict(record)
      title = f"step {step}  {worth}  ended by {record['finish_reason']}"
      self._print(
        rich.panel.Panel(
          body,
          title=rich.text.Text(title),
          title_align="left",
          border_style="green" if good else "red",
          box=rich.box.ROUNDED,
        )
      )

  def closing(
    self, before: Result | None, after: Result | None, directory: pathlib.Path
  ) -> None:
    """Shows the accuracies before and after, and where the files are.

    Args:
      before: of the policy that the run started from.
      after: of the one that it ended with.
    """
    table = rich.table.Table(
      title="accuracy on held-out questions",
      box=rich.box.SIMPLE_HEAD,
      title_justify="left",
    )
    table.add_column("")
    for heading in ("accuracy", "95% interval", "correct", "questions"):
      table.add_column(heading, justify="right", no_wrap=True)
    for name, result in (("before", before), ("after", after)):
      if result is not None:
        table.add_row(
          name,
          f"{result.accuracy:.1%}",
          text.interval(*result.interval),
          text.count(result.correct),
          text.count(result.questions),
        )
    if table.rows:
      self._print(table)
    if (changed := held_out.changed(directory)) is not None:
      self._pairs(changed)
    for line in demonstrations.summary(directory):
      self.note(line)
    self.note(f"report: {directory / 'report.html'}")

  def _pairs(self, changed: held_out.Changed) -> None:
    """Shows some questions that were answered wrong before and right after."""
    self.note(changed.counts)
    for before, after in changed.gained[:_PAIRS]:
      self._print(
        _texts(
          [
            ("  question", after["prompt"]),
            ("  before", before["completion"]),
            ("  after", after["completion"]),
          ]
        )
      )

  def _print(self, shown: rich.console.RenderableType) -> None:
    # A line of a log stays one line, however long.
    words = isinstance(shown, rich.text.Text)
    whole = words and not self._console.is_terminal
    try:
      self._console.print(shown, soft_wrap=whole)
    except OSError:  # such as a full disk
      self._console.on_broken_pipe()


class _Console(rich.console.Console):
  """Goes quiet where nobody can read it any more: the run goes on."""

  def on_broken_pipe(self) -> None:
    self.quiet = True
    command_line.let_go_of_stdout()


class NotebookOutput:
  """Something below a notebook's cell, written over in place."""

  def __init__(self) -> None:
    self._shown: Any = None

  def write(self, content: Mapping[str, str]) -> None:
    """Shows it for the first time, or in the place of what was there.

    Args:
      content: by MIME type; images in base64.
    """
    if self._shown is None:
      display = importlib.import_module("IPython.display").display
      self._shown = display(dict(content), raw=True, display_id=True)
    else:
      self._shown.update(dict(content), raw=True)


def _texts(rows: Iterable[tuple[str, object]]) -> rich.table.Table:
  """Returns texts, each beside its heading."""
  grid = rich.table.Table.grid(padding=(0, 2))
  grid.add_column(style="bold", no_wrap=True)
  grid.add_column(overflow="fold")
  for heading, words in rows:
    grid.add_row(heading, _plain(str(words).strip()))
  return grid


def _plain(words: str) -> rich.text.Text:
  """Returns text to print as it is: no markup, nothing a terminal obeys."""
  return rich.text.Text(text.visible(words))


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}h {minutes:02d}m"
  return f"{minutes}m {seconds:02d}s" if minutes else f"{seconds}s"
