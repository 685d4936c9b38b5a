"""Ranking: weights without training, and what other runs make of them."""

import json
import pathlib
import subprocess
import sys

import chex
import numpy as np
import pytest

from bilevel_jax import config, errors, rank, train
from bilevel_jax.data import corpora
from bilevel_jax.training import sources
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("programs_of_any_name")


@pytest.fixture(scope="module")
def ranked(directory):
  """A ranking of ten demonstrations, four batches of answers for each."""
  trained = tiny_run.parsed(
    directory, "trained", steps=50, training__max_sampled_tokens=1
  )
  settings = rank.settings_of(trained, times=4)
  return settings, train.run(settings)


def _rows(settings):
  return tiny_run.logged(settings.run_dir, "demonstrations.jsonl")


def test_a_ranking_moves_no_parameter_and_exports_none(ranked, directory):
  settings, last = ranked
  assert settings.run_dir == str(directory / "trained-ranking")
  assert last.number == 4  # all ten in each
  assert last.before is None
  start = sources.read_base(last.run.model, last.run.mesh)
  chex.assert_trees_all_equal(last.run.state.base, start)
  left = {path.name for path in pathlib.Path(settings.run_dir).iterdir()}
  assert "demonstrations.jsonl" in left
  assert "export" not in left


def test_each_demonstration_is_measured_in_every_batch_with_signal(ranked):
  settings, _ = ranked
  silent = [
    line["rl/groups_without_advantage"]
    for line in tiny_run.logged(settings.run_dir)[1:]
  ]
  times = sum(share < 1 for share in silent)
  rows = _rows(settings)
  assert len(rows) == 10
  assert times > 1
  assert {row["times_seen"] for row in rows} == {times}
  assert len({row["effect"] for row in rows}) == 10


def test_what_is_kept_is_data(ranked, tmp_path):
  settings, _ = ranked
  rows = _rows(settings)
  bound = sorted(row["effect"] for row in rows)[5]
  for row in rows:
    row["weight"] = row["effect"] - bound
  file = tmp_path / "demonstrations.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  command = [sys.executable, "-m", "bilevel_jax.rank", "--keep-above", "0"]
  done = subprocess.run(
    [*command, str(tmp_path)], capture_output=True, check=True, timeout=120
  )
  printed = tmp_path / "kept.jsonl"
  printed.write_bytes(done.stdout)
  given = {q.id: q for q in corpora.load(settings.data.questions)}
  found = corpora.load(config.Source(path=str(printed)))
  assert len(found) == 4
  for question in found:
    assert question[:4] == given[question.id][:4]
    assert question.meta.items() >= given[question.id].meta.items()


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (None, "does not exist"),
    ('{"id": "a"}\n', "must have a weight in every line"),
    ("no JSON\n", "is not JSON"),
  ],
)
def test_what_is_no_ranking_is_refused(tmp_path, content, said):
  if content is not None:
    (tmp_path / "demonstrations.jsonl").write_text(content)
  with pytest.raises(errors.ConfigError, match=said):
    rank.kept(tmp_path, 0.5)


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--keep-above", "0.5"], "expected 2 arguments"),
    (["--keep-above", "x", "."], "begin with a number, got x"),
    (["--keep-above", "nan", "."], "begin with a number, got nan"),
    (["--keep-above", "0.5", ".", "--config", "a.py"], "must stand alone"),
    (["--times", "0", "--config", "configs/quickstart.py"], "at least 1"),
    (["--times", "2"], "--config must name a config file"),
    (["--config", "none.py"], "none.py"),
  ],
)
def test_a_command_line_that_cannot_be_used_is_one_sentence(arguments, said):
  done = subprocess.run(
    [sys.executable, "-m", "bilevel_jax.rank", *arguments],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 2
  assert said in done.stderr
  assert done.stderr.count("\n") == 1


def _weights(directory, settings, *values):
  file = directory / "weights.jsonl"
  questions = corpora.load(settings.data.questions)
  file.write_text(
    "".join(
      json.dumps({"id": question.id, "weight": value}) + "\n"
      for question, value in zip(questions, values, strict=True)
    )
  )
  return str(file)


def test_a_run_multiplies_its_sft_loss_by_given_weights(directory):
  """By 0.5 each, of the same tokens: half the loss, and half the gradient."""
  how = {"method__name": "mixed", "steps": 1}
  plain = tiny_run.parsed(directory, "plain", **how)
  train.run(plain)
  file = _weights(directory, plain, *[0.5] * 10)
  halved = tiny_run.parsed(
    directory, "halved", data__demonstrations__weights=file, **how
  )
  train.run(halved)
  one, other = (tiny_run.logged(s.run_dir)[1] for s in (plain, halved))
  for name in ("sft/loss", "sft/gradient_norm"):
    np.testing.assert_allclose(other[name], one[name] / 2, rtol=1e-5)
  assert other["rl/loss"] == one["rl/loss"]


def test_a_run_goes_on_with_its_weights_alone(directory):
  how = {"method__name": "mixed", "steps": 1}
  settings = tiny_run.parsed(directory, "weighted", **how)
  file = _weights(directory, settings, *[0.5] * 10)
  how["data__demonstrations__weights"] = file
  train.run(tiny_run.parsed(directory, "weighted", **how))
  _weights(directory, settings, 0.25, *[0.5] * 9)
  more = tiny_run.parsed(
    directory, "weighted", resume=True, **(how | {"steps": 2})
  )
  with pytest.raises(errors.ConfigError, match="the examples are others"):
    train.run(more)


def test_a_method_without_an_sft_loss_takes_no_weights(directory):
  settings = tiny_run.parsed(directory, "unused")
  file = _weights(directory, settings, *[0.5] * 10)
  with pytest.raises(errors.ConfigError, match="uft, which begins samples"):
    train.run(
      tiny_run.parsed(
        directory,
        "unused",
        method__name="uft",
        data__demonstrations__weights=file,
      )
    )
