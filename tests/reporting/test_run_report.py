"""The report shows a run as it was, needs nothing else, and obeys no text."""

import html.parser
import json
import math
import re
import shutil

import pytest

from bilevel_jax import config
from bilevel_jax.reporting import charts, run_report
from bilevel_jax.runs import directory, records
from bilevel_jax.runs.writers import Writers

HOSTILE = '<script>alert(1)</script> & "q" [bold] \x1b[31m \ud800'


def make_settings(run_dir):
  return config.parse(
    {
      "run_dir": str(run_dir),
      "seed": 7,
      "model": {"preset": "tiny<b>"},
      "data": {"questions": {"task": "arithmetic"}},
    }
  )


def evaluation(accuracy):
  return {
    "evaluation/accuracy": accuracy,
    "evaluation/accuracy_low": accuracy - 0.0311,
    "evaluation/accuracy_high": accuracy + 0.0311,
    "evaluation/questions": 500,
  }


def training(step):
  return {
    "rl/reward": 0.1 * step,
    "sft/loss": 1 / step,
    "bilevel/cooperative_gain": 0.01 if step != 3 else math.nan,
    "bilevel/cooperative_gain_se": 0.02,
    "rl/kl_to_reference": 0.0,
    "rollout/length": 30.0,
    "rl/entropy": 1.0,
    "rl/gradient_norm": 0.0 if step == 1 else math.inf,
    "sft/gradient_norm": 0.5,
    "time/rollout_s": 1.0,
    "time/update_s": 2.0,
  }


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  path = tmp_path_factory.mktemp("run")
  settings = make_settings(path)
  files = directory.prepare(path, settings, False)
  files.start(settings, 0)
  with Writers(files, settings) as writers:
    writers.step(0, evaluation(0.2))
    for step in range(1, 6):
      writers.step(step, training(step))
      writers.completions(
        step,
        [
          {
            "prompt": f"question of step {step}",
            "completion": HOSTILE,
            "answer": "4",
            "reward": 1.0 if step == 5 else None,
            "finish_reason": "length",
          }
        ],
      )
    writers.step(5, evaluation(0.8))
  return files


@pytest.fixture
def files(done, tmp_path):
  """A run's files, to be changed."""
  shutil.copytree(done.path, tmp_path, dirs_exist_ok=True)
  return directory.RunDirectory(tmp_path)


class Page(html.parser.HTMLParser):
  """What a browser would find in a page."""

  VOID = ("meta", "path", "use", "rect", "br", "link", "img")

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.links, self.said = [], [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.said.append(data)

  @property
  def text(self):
    return " ".join(self.said)


def page_of(files):
  return Page(run_report.write_report(files.path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(done):
  return page_of(done)


def test_the_page_needs_nothing_else(page, done):
  assert page.open == []
  assert not {"script", "link", "img", "iframe"} & set(page.tags)
  assert all(link.startswith("#") for link in page.links)
  style = done.report.read_text(encoding="utf-8")
  assert "@import" not in style
  assert not re.search(r"url\((?!#)", style)


def test_every_metric_that_was_logged_has_its_curve(page):
  assert page.tags.count("figure") == page.tags.count("svg") == 9
  for title in (
    "Reward",
    "Accuracy on held-out questions",
    "SFT loss",
    "Cooperative gain",
    "KL divergence",
    "Response length",
    "Entropy",
    "Gradient norms",
    "Seconds per phase",
  ):
    assert title in page.text


def test_accuracy_before_and_after_with_intervals(page):
  text = re.sub(r"\s+", " ", page.text)
  assert "before (step 0) 20.0% 16.9% to 23.1% 500" in text
  assert "after (step 5) 80.0% 76.9% to 83.1% 500" in text


def test_first_middle_and_last_completions_are_shown(page):
  text = page.text
  shown = [step for step in range(1, 6) if f"question of step {step}" in text]
  assert shown == [1, 3, 5]
  assert "reward 1.00 · ended by length · answer 4" in text
  assert "not scored · ended by length" in text


def test_nothing_in_a_completion_is_obeyed(page):
  assert "script" not in page.tags
  assert "b" not in page.tags
  assert r'<script>alert(1)</script> & "q" [bold] \x1b[31m \ud800' in page.text


def test_settings_are_shown_those_that_differ_first(page):
  text = re.sub(r"\s+", " ", page.text)
  changed = text[text.index("setting value") : text.index("All settings")]
  assert "seed 7" in changed
  assert 'model.preset "tiny<b>"' in changed
  assert "optimizer" not in changed
  assert "optimizer.base.warmup_steps" in text
  assert "jax" in text[text.index("Versions") :]


def test_a_resumed_run_shows_each_step_once(files):
  before = records.by_step(files.metrics)
  assert list(before) == list(range(6))
  assert before[5]["rl/reward"] == 0.5
  assert before[5]["evaluation/accuracy"] == 0.8


@pytest.mark.parametrize("left", [(), ("config.json",), ("metrics.jsonl",)])
def test_files_that_are_missing_are_left_out(files, left):
  for path in (files.settings, files.metrics, files.completions):
    if path.name not in left:
      path.unlink()
  page = page_of(files)
  assert page.open == []
  assert ("figure" in page.tags) == ("metrics.jsonl" in left)
  assert ("Settings" in page.text) == ("config.json" in left)


def test_one_step_that_is_not_finite_is_enough_for_a_report(files):
  line = {"step": 1, "rl/reward": "nan", "bilevel/cooperative_gain": "-inf"}
  files.metrics.write_text(json.dumps(line) + "\n")
  assert page_of(files).tags.count("svg") == 2


def test_the_same_run_gives_the_same_page(files):
  first = run_report.write_report(files.path).read_bytes()
  assert run_report.write_report(files.path).read_bytes() == first


def test_curves_take_the_colour_of_the_page(page, done):
  del page  # the report has been written
  text = done.report.read_text(encoding="utf-8")
  assert "currentColor" in text
  assert charts._INK not in text
  assert "color-scheme: light dark" in text


def test_a_curve_goes_through_its_numbers():
  steps = {s: {"sft/loss": float(s**2)} for s in range(5)}
  x, y = charts._series("sft/loss", steps)
  assert x.tolist() == [0, 1, 2, 3, 4]
  assert y.tolist() == [0, 1, 4, 9, 16]


def test_the_gain_has_a_band_of_one_standard_error():
  steps = {
    s: {"bilevel/cooperative_gain": 1.0, "bilevel/cooperative_gain_se": 0.5}
    for s in range(3)
  }
  (chart,) = [c for c in charts.CHARTS if c.title == "Cooperative gain"]
  _, y = charts._series("bilevel/cooperative_gain", steps)
  low, high = charts._bounds(chart, y, steps)
  assert low.tolist() == [0.5] * 3
  assert high.tolist() == [1.5] * 3
