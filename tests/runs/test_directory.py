"""A run_dir belongs to one run, and a resumed run is that run."""

import dataclasses
import json
import pathlib

import jax
import pytest

import bilevel_jax
from bilevel_jax import config, errors
from bilevel_jax.runs import directory as run_directory
from bilevel_jax.runs import records
from bilevel_jax.runs.writers import Writers


def make_settings(run_dir="run", **changes):
  return config.parse(
    {
      "run_dir": str(run_dir),
      "model": {"preset": "tiny"},
      "data": {"questions": {"task": "arithmetic"}},
      **changes,
    }
  )


def started(path, settings=None):
  settings = settings or make_settings(path)
  directory = run_directory.prepare(path, settings, False)
  directory.start(settings, 0)
  return directory


def test_a_new_directory_is_made_with_its_parents(tmp_path):
  directory = run_directory.prepare(tmp_path / "a/b", make_settings(), False)
  assert directory.path.is_dir()
  assert list(directory.path.iterdir()) == []


def test_files_have_the_names_that_the_documents_give():
  directory = run_directory.RunDirectory(pathlib.Path("/run"))
  names = {
    directory.settings: "config.json",
    directory.metrics: "metrics.jsonl",
    directory.completions: "completions.jsonl",
    directory.answers: "answers.jsonl",
    directory.checkpoints: "checkpoints",
    directory.export: "export",
    directory.report: "report.html",
  }
  assert all(path == directory.path / name for path, name in names.items())


def test_config_json_holds_every_setting_and_the_versions(tmp_path):
  settings = make_settings(tmp_path, seed=7)
  written = json.loads(started(tmp_path, settings).settings.read_text())
  assert config.parse(written["config"]) == settings
  assert written["versions"]["jax"] == jax.__version__
  assert written["versions"]["bilevel_jax"] == bilevel_jax.__version__
  assert {"flax", "optax", "orbax-checkpoint"} <= set(written["versions"])


def test_settings_that_never_started_leave_the_directory_unused(tmp_path):
  run_directory.prepare(tmp_path, make_settings(), False)
  run_directory.prepare(tmp_path, make_settings(), False)


def test_files_of_others_do_not_make_it_used(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  run_directory.prepare(tmp_path, make_settings(), False)


@pytest.mark.parametrize(
  "name", ["config.json", "metrics.jsonl", "completions.jsonl"]
)
def test_a_used_directory_is_refused(tmp_path, name):
  (tmp_path / name).write_text("")
  with pytest.raises(errors.ConfigError, match=rf"unless resume .*{name}"):
    run_directory.prepare(tmp_path, make_settings(), False)


def test_a_directory_with_checkpoints_is_refused(tmp_path):
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  with pytest.raises(errors.ConfigError, match=r"got one with checkpoints"):
    run_directory.prepare(tmp_path, make_settings(), False)


def test_resume_from_nothing_is_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match="nothing to resume"):
    run_directory.prepare(tmp_path, make_settings(), True)
  with pytest.raises(errors.ConfigError, match="nothing to resume"):
    run_directory.prepare(tmp_path / "absent", make_settings(), True)
  assert not (tmp_path / "absent").exists()


def test_resume_from_a_broken_config_is_refused(tmp_path):
  (tmp_path / "config.json").write_text('{"config": {')
  with pytest.raises(errors.ConfigError, match="cannot be read"):
    run_directory.prepare(tmp_path, make_settings(), True)


def test_a_path_under_a_file_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  for path in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(errors.ConfigError, match="must be a directory") as e:
      run_directory.prepare(path, make_settings(), False)
    assert "\n" not in str(e.value)


def test_a_directory_without_permission_is_refused(tmp_path, monkeypatch):
  # The tests may run as root, for whom permissions do not count.
  def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(run_directory.tempfile, "TemporaryFile", refuse)
  with pytest.raises(errors.ConfigError, match="got Permission denied"):
    run_directory.prepare(tmp_path, make_settings(), False)


def test_the_same_settings_resume(tmp_path):
  started(tmp_path)
  settings = make_settings(tmp_path, resume=True)
  assert run_directory.prepare(tmp_path, settings, True).path == tmp_path


def test_what_moves_no_number_may_change(tmp_path):
  started(tmp_path)
  settings = make_settings(
    tmp_path / ".." / tmp_path.name,
    resume=True,
    steps=5,
    evaluation={"every": 3},
    logging={"show_every": 1},
    checkpoints={"every": 2},
    reward={"memory": "8GB"},
  )
  directory = run_directory.prepare(tmp_path, settings, True)
  directory.start(settings, 0)
  written = json.loads(directory.settings.read_text())
  assert written["config"]["steps"] == 5


def test_what_moves_a_number_may_not_change_and_is_named(tmp_path):
  started(tmp_path)
  settings = make_settings(
    tmp_path,
    seed=1,
    steps=5,
    optimizer={"base": {"learning_rate": 0.5}},
    reward={"verifiers": ("exact",), "weights": (2.0,)},
    evaluation={"temperature": 1.0},
  )
  with pytest.raises(errors.ConfigError) as error:
    run_directory.prepare(tmp_path, settings, True)
  sentence = str(error.value)
  assert "seed must stay 0, got 1" in sentence
  assert "optimizer.base.learning_rate must stay None, got 0.5" in sentence
  assert "reward.verifiers must stay ['math'], got ['exact']" in sentence
  assert "evaluation.temperature must stay 0.0, got 1.0" in sentence
  assert "steps" not in sentence
  assert "\n" not in sentence


def test_the_settings_that_may_change_exist():
  def paths(value, prefix=""):
    for field in dataclasses.fields(value):
      item = getattr(value, field.name)
      yield prefix + field.name
      if dataclasses.is_dataclass(item):
        yield from paths(item, prefix + field.name + ".")

  assert set(run_directory.MAY_CHANGE) <= set(paths(config.Config()))


def test_a_start_drops_what_was_logged_after_its_step(tmp_path):
  directory = started(tmp_path)
  with Writers(directory, make_settings()) as writers:
    for step in range(4):
      writers.step(step, {"rl/reward": step})
      writers.completions(step, [{"prompt": str(step)}])
  directory.start(make_settings(), 2)
  steps = [record["step"] for record in records.read_records(directory.metrics)]
  assert steps == [0, 1, 2]
  steps = [
    record["step"] for record in records.read_records(directory.completions)
  ]
  assert steps == [0, 1, 2]
  directory.start(make_settings(), 0)
  assert records.read_records(directory.metrics) == []


def test_what_was_logged_at_a_step_can_be_asked_for(tmp_path):
  directory = started(tmp_path)
  with Writers(directory, make_settings()) as writers:
    writers.step(0, {"evaluation/accuracy": 0.25})
    writers.step(0, {"time/evaluation_s": 2})
    writers.step(1, {"rl/reward": 1.0})
  assert directory.logged_at(0) == {
    "step": 0,
    "evaluation/accuracy": 0.25,
    "time/evaluation_s": 2.0,
  }
  assert directory.logged_at(9) == {}


def test_a_missing_logger_is_refused_before_anything_else(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(__import__("sys").modules, "wandb", None)
  settings = make_settings(logging={"wandb_project": "p"})
  with pytest.raises(errors.ConfigError, match="needs the package wandb"):
    run_directory.prepare(tmp_path, settings, False)


def test_a_write_is_all_or_nothing(tmp_path, monkeypatch):
  path = tmp_path / "config.json"
  records.write_atomically(path, "old")

  def die(descriptor):
    raise KeyboardInterrupt

  monkeypatch.setattr(records.os, "fsync", die)
  with pytest.raises(KeyboardInterrupt):
    records.write_atomically(path, "new")
  assert path.read_text() == "old"
