"""A comparison holds what its runs left, no more and no less."""

import json
import pathlib
import re

import numpy as np
import pytest
from scipy import stats

from bilevel_jax import config, errors
from bilevel_jax.reporting import comparison, comparison_charts
from bilevel_jax.reporting.groups import group as grouped
from bilevel_jax.runs.finished import read_run
from tools import compare_runs

STEPS = 6


def write(directory, method, seed, accuracies, *, answers=None, **settings):
  """Leaves a run: evaluated at steps 0, 3 and 6, a second and a half a step."""
  directory.mkdir()
  given = config.default_config()
  given.model.preset = "tiny"
  given.data.questions.task = "arithmetic"
  given.method.name = method
  given.seed = seed
  given.run_dir = str(directory)
  given.update_from_flattened_dict(settings)
  plain = config.to_dict(config.parse(given))
  (directory / "config.json").write_text(json.dumps({"config": plain}))
  evaluated = dict(zip((0, 3, 6), accuracies, strict=True))
  lines = []
  for step in range(STEPS + 1):
    line = {"step": step}
    if step:
      line |= {
        "rl/reward": 0.1 * step,
        "rollout/tokens": 100.0 * seed,
        "training/update_flops": 1e9 * seed,
        "time/step_s": 1.5,
        "time/rollout_s": 0.5,
        "time/reward_s": 0.25,
        "time/update_s": 0.5,
      }
    if step in evaluated:
      line |= {"evaluation/accuracy": evaluated[step]}
    if method == "bridge":
      line |= {"bilevel/cooperative_gain": 0.01 * step}
    lines.append(line)
  rows = [
    {
      "step": step,
      "question_id": f"q{n}",
      "prompt": f"{n}+{n}<?",
      "completion": f"of {method} {seed}",
      "answer": str(2 * n),
      "reward": float(right),
      "correct": bool(right),
      "finish_reason": "stop",
      "tokens": 3,
    }
    for step in (0, 6)
    for n, right in enumerate([] if answers is None else answers)
  ]
  for name, records in (("metrics", lines), ("answers", rows)):
    text = "".join(json.dumps(record) + "\n" for record in records)
    (directory / f"{name}.jsonl").write_text(text)
  return str(directory)


@pytest.fixture
def four(tmp_path):
  """Two seeds of two methods, with answers to four questions."""
  return [
    write(
      tmp_path / f"{method}{seed}",
      method,
      seed,
      (0.1, middle + seed / 10, last + seed / 10),
      answers=right,
    )
    for method, seed, middle, last, right in (
      ("bridge", 1, 0.3, 0.6, [1, 1, 1, 0]),
      ("bridge", 2, 0.3, 0.6, [1, 1, 1, 1]),
      ("grpo", 1, 0.2, 0.3, [1, 0, 0, 0]),
      ("grpo", 2, 0.2, 0.3, [1, 1, 0, 0]),
    )
  ]


def test_runs_that_differ_in_their_seed_are_replicates(four, tmp_path):
  flipped = write(
    tmp_path / "other", "bridge", 1, (0, 0, 0), **{"method.bridge.penalty": 0.3}
  )
  # A setting of another method, and where a run was, set nothing apart.
  alike = write(
    tmp_path / "alike", "grpo", 3, (0, 0, 0), **{"method.hpt.gate": 0.5}
  )
  groups = grouped([read_run(path) for path in (*four, flipped, alike)])
  assert {group.name: list(group.by_seed()) for group in groups} == {
    "bridge (penalty=0.5)": [1, 2],
    "grpo": [1, 2, 3],
    "bridge (penalty=0.3)": [1],
  }
  with pytest.raises(errors.ConfigError, match="same settings and seed 1"):
    grouped([read_run(four[0]), read_run(four[0])])


def test_figures_are_those_of_the_files(four):
  groups = grouped([read_run(path) for path in four])
  summary = comparison.compare_groups(groups, "bridge")
  bridge, grpo = summary["groups"]["bridge"], summary["groups"]["grpo"]
  half = stats.t.ppf(0.975, 1) * 0.05  # std of 0.7, 0.8 over sqrt(2)
  np.testing.assert_allclose(
    bridge["accuracy"], (0.75, 0.75 - half, 0.75 + half)
  )
  assert summary["target"] == pytest.approx((0.1 + 0.75) / 2)
  # 0.4 and 0.5 at step 3: one seed is there, the other at step 6.
  assert bridge["to_target"] == {
    "reached": 2,
    "of": 2,
    "median": {"steps": 4.5, "tokens": 600, "flops": 6e9, "seconds": 6.75},
  }
  assert grpo["to_target"]["reached"] == 1
  cost = bridge["cost"]
  assert (cost["steps"], cost["tokens"], cost["step_s"]) == (6, 900, 1.5)
  assert cost["seconds"] == {
    "sampling": 2.5,
    "rewards": 1.25,
    "update": 2.5,
    "other": 1.25,
    "first step": 1.5,
  }
  against = grpo["reference_minus_this"]
  assert against["difference"][0] == 0.5  # 7 of 8 against 3 of 8
  assert against["paired_by"] == "4 questions, 2 seeds"


def test_without_answers_seeds_are_paired(tmp_path):
  found = []
  for method, lasts in (("bridge", (0.5, 0.7, 0.6)), ("grpo", (0.4, 0.5, 0.6))):
    for seed, last in enumerate(lasts):
      path = tmp_path / f"{method}{seed}"
      found.append(write(path, method, seed, (0.1, 0.2, last)))
  groups = grouped([read_run(path) for path in found])
  row = comparison.compare_groups(groups, "bridge")["groups"]["grpo"]
  expected = stats.ttest_rel((0.5, 0.7, 0.6), (0.4, 0.5, 0.6))
  assert row["reference_minus_this"]["p"] == pytest.approx(expected.pvalue)
  assert row["reference_minus_this"]["paired_by"] == "3 seeds"


def test_curves_of_seeds_meet_on_one_axis(four):
  bridge, _ = grouped([read_run(path) for path in four])
  x, mean, *_ = comparison.seed_band(bridge, "evaluation/accuracy", "tokens")
  # Seed 1 samples 100 tokens a step and ends at 600; seed 2 is then half way.
  np.testing.assert_allclose(x, [0, 300, 600])
  np.testing.assert_allclose(mean, [0.1, (0.4 + 0.3) / 2, (0.7 + 0.5) / 2])


def test_operations_that_no_step_counted_are_not_known(four, tmp_path):
  uncounted = pathlib.Path(four[0]) / "metrics.jsonl"
  lines = [json.loads(line) for line in uncounted.read_text().splitlines()]
  for line in lines:
    line.pop("training/update_flops", None)
  uncounted.write_text("".join(json.dumps(line) + "\n" for line in lines))
  run = read_run(four[0])
  assert not len(run.curve("evaluation/accuracy", "flops")[0])
  assert len(run.curve("evaluation/accuracy", "steps")[0]) == 3
  out = tmp_path / "out"
  assert compare_runs.main([*four, "--out", str(out)]) == 0
  costs = json.loads((out / "comparison.json").read_text())["groups"]
  assert costs["bridge"]["cost"]["flops"] is None
  assert costs["grpo"]["cost"]["flops"] == 9e9  # seeds 1 and 2, six steps


def test_the_page_needs_nothing_else(four, tmp_path, capsys):
  out = tmp_path / "out"
  assert compare_runs.main([*four, "--out", str(out)]) == 0
  assert "75.0%" in capsys.readouterr().out
  page = (out / "comparison.html").read_text()
  assert not re.search(r'(src|href)="(?!data:)', page)
  for shown in ("of bridge 1", "0+0&lt;?", "data:image/png", "50.0%"):
    assert shown in page
  written = json.loads((out / "comparison.json").read_text())
  assert set(written["groups"]) == {"bridge", "grpo"}
  plotted = {path.stem for path in out.glob("*.png")}
  assert plotted == {"accuracy", "final", "reward", "gain", "cost"}


def test_a_wide_band_does_not_flatten_the_curves(four):
  """Of two seeds at 0.5 and 0.7 the band goes from -0.7 to 1.9."""
  groups = grouped([read_run(path) for path in four])
  picture = comparison_charts.draw_comparison(
    groups, comparison.compare_groups(groups, "bridge")
  )["accuracy"]
  lines = np.hstack([y.get_ydata() for a in picture.axes for y in a.lines])
  low, high = picture.axes[0].get_ylim()
  assert low < lines.min() < lines.max() < high
  assert high - low < 2 * np.ptp(lines)
  assert max(band[1] for band in _bands(picture)) > high


def _bands(picture):
  for axes in picture.axes:
    for band in axes.collections:
      heights = band.get_paths()[0].vertices[:, 1]
      yield heights.min(), heights.max()


def test_what_is_no_run_is_refused(tmp_path, capsys):
  assert compare_runs.main([str(tmp_path)]) == 2
  assert "config.json" in capsys.readouterr().err


def test_a_panel_without_a_curve_says_so(tmp_path):
  run = write(tmp_path / "one", "grpo", 1, (0.1, 0.2, 0.3))
  path = tmp_path / "one" / "metrics.jsonl"
  path.write_text(path.read_text().replace("training/update_flops", "x"))
  groups = grouped([read_run(run)])
  summary = comparison.compare_groups(groups, "grpo")
  steps, _, flops, _ = comparison_charts.draw_comparison(groups, summary)[
    "accuracy"
  ].axes
  assert [text.get_text()[:7] for text in flops.texts] == ["unknown"]
  assert not steps.texts


def test_a_place_that_cannot_be_written_is_refused(four, capsys):
  assert compare_runs.main([*four, "--out", "/dev/null/x"]) == 2
  assert "error: " in capsys.readouterr().err


def test_runs_that_were_never_evaluated_spoil_no_number(four, tmp_path):
  nan = float("nan")
  never = write(tmp_path / "never", "sft", 1, (nan, nan, nan))
  read = lambda paths: grouped([read_run(path) for path in paths])
  with_it = comparison.compare_groups(read([never, *four]), "bridge")
  assert (
    with_it["target"]
    == comparison.compare_groups(read(four), "bridge")["target"]
  )
  assert compare_runs.main([never, "--out", str(tmp_path / "out")]) == 0
  text = (tmp_path / "out" / "comparison.html").read_text()
  assert "No run was evaluated." in text
  assert "nan%" not in text


def test_an_unknown_reference_is_refused(four, capsys):
  assert compare_runs.main([*four, "--reference", "sft"]) == 2
  assert "bridge; grpo" in capsys.readouterr().err
