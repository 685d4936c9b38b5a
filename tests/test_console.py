"""The command bilevel-jax: what its options become, and what it refuses."""

import json
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from bilevel_jax import config, console, errors, main
from bilevel_jax.config import other_names
from tests import processes, tiny_run

# How ml_collections loads a config file.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def _flags():
  with flagsaver.flagsaver():
    yield


def _settings(monkeypatch, *arguments):
  """The settings that a command line of `train` comes to."""
  given = ["bilevel-jax train", *console.spelled_out(arguments)]
  monkeypatch.setattr(sys, "argv", list(given))
  return main.read_settings(main.parse_flags(given))


def test_options_become_settings(monkeypatch, tmp_path):
  path = tmp_path / "mine.jsonl"
  path.write_text('{"question": "1+1", "answer": "2"}')
  found = _settings(
    monkeypatch, "--model", "somewhere", "--data", str(path), "--reward",
    "exact,number", "--method=mixed", "--steps", "3", "--evaluation",
    "arithmetic", "--rollout.samples-per-prompt=8", "--run_dir=there",
  )  # fmt: skip
  assert found.model.weights == "somewhere"
  assert found.data.questions.path == str(path)
  assert found.data.evaluation.task == "arithmetic"
  assert found.reward.verifiers == ("exact", "number")
  assert (found.method.name, found.steps) == ("mixed", 3)
  assert (found.rollout.samples_per_prompt, found.run_dir) == (8, "there")


@pytest.mark.parametrize(
  ("named", "expected"),
  [
    ("some/data:main", {"hub": "some/data", "name": "main"}),
    ("arithmetic", {"task": "arithmetic"}),
    ("a.csv=0.5,some/data=0.5", {"sources": ("a.csv=0.5", "some/data=0.5")}),
    ("absent.parquet", {"path": "absent.parquet"}),
  ],
)
def test_data_is_named_by_one_text(monkeypatch, named, expected):
  found = _settings(monkeypatch, "--model=m", "--data", named).data.questions
  assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("kind", ["json", "run", "yaml", "py"])
def test_settings_come_from_a_file_of_any_kind(monkeypatch, tmp_path, kind):
  tree = {
    "model": {"weights": "m"},
    "data": {"questions": {"task": "countdown"}},
  }
  tree["reward"] = {"verifiers": ["exact", "number"]}
  if kind == "run":
    tree = json.loads(json.dumps(config.to_dict(config.parse(tree))))
    tree["resume"] = True
    tree = {"config": tree, "versions": {}}
  path = tmp_path / f"file.{'json' if kind == 'run' else kind}"
  path.write_text(json.dumps(tree))
  if kind == "py":
    path.write_text(
      "from bilevel_jax import config\n\ndef get_config():\n"
      f"  return config.from_file({str(tmp_path / 'file.json')!r})\n"
    )
    (tmp_path / "file.json").write_text(json.dumps(tree))
  found = _settings(monkeypatch, "--config", str(path), "--steps=7")
  assert (found.steps, found.resume) == (7, False)
  assert found.reward.verifiers == ("exact", "number")
  assert found.data.questions.task == "countdown"


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (["--num_generations=8"], "did you mean rollout.samples_per_prompt?"),
    (["--rl.beta", "0.1"], "rl.beta is not a field, did you mean rl.kl_coef?"),
    (["--steps"], "--steps must be followed by a value"),
    (["--datum", "x"], "datum is not a field, did you mean data?"),
  ],
)
def test_what_is_no_setting_is_refused(arguments, sentence):
  with pytest.raises(errors.ConfigError, match=sentence.replace("?", r"\?")):
    console.spelled_out(arguments)


def test_names_of_others_are_of_settings():
  for ours in other_names.THEIRS.values():
    config.check_name(ours.split("."))


def test_it_trains(directory, tmp_path):
  c = tiny_run.settings(directory)
  c.steps, c.checkpoints.export, c.data.evaluation.task = 1, False, None
  path = tmp_path / "tiny.json"
  path.write_text(json.dumps(config.to_dict(config.parse(c))))
  subprocess.run(
    [
      sys.executable, "-m", "bilevel_jax.console", "train", "--config", path,
      "--run_dir", tmp_path / "run", "--method", "sft", "--reward", "exact",
    ],
    check=True,
    cwd=processes.ROOT,
  )  # fmt: skip
  assert len(tiny_run.logged(tmp_path / "run")) == 2


def test_the_command_says_what_it_can_do(capsys):
  assert console.main([]) == 0
  assert "bilevel-jax COMMAND" in capsys.readouterr().out
  assert console.main(["trian"]) == 2
  assert "train, rank, difficulty, generate" in capsys.readouterr().err
