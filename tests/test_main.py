"""Bad input: one sentence, exit code 2, before anything is computed."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from bilevel_jax import config, errors, main, train
from tests import processes, tiny_run


def _refused(settings) -> str:
  """The message of the ConfigError that the settings raise."""
  with pytest.raises(errors.ConfigError) as caught:
    train.run(config.parse(settings))
  message = str(caught.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"steps": 0}, "steps must be at least 1, got 0"),
    (
      {"rollout.samples_per_prompt": 0},
      "rollout.samples_per_prompt must be at least 1, got 0",
    ),
    (
      {"rl.updates_per_rollout": 5, "data.demonstrations_per_step": 5},
      "rl.updates_per_rollout must divide the 12 samples of a step "
      "(data.prompts_per_step 3 x rollout.samples_per_prompt 4), got 5",
    ),
    (
      {"rl.updates_per_rollout": 3},
      "data.demonstrations_per_step must be a multiple of the 3 updates of a "
      "step, got 4",
    ),
    (
      {"rollout.total_tokens": 11},
      "rollout.total_tokens must be at least 1 for each of the 12 samples of a "
      "step, got 11",
    ),
    ({"rollout.stop": ("a", "")}, "rollout.stop[1] must not be empty, got ''"),
    (
      {"rollout.kv_cache_bytes": 1000},
      "may take 1000 bytes, but must hold one row of 64 columns, which takes",
    ),
    ({"evaluation.max_new_tokens": 113}, "the model has 128 positions"),
    (
      {"method.name": "bridg"},
      "method.name takes alternating, bridge",
    ),
    (
      {"method.bridge.hypergradient": "one_step"},
      "method.bridge.rl_only_base must be one_step, got persistent",
    ),
    (
      {
        "method.bridge.hypergradient": "implicit",
        "method.bridge.rl_only_base": "one_step",
      },
      "method.bridge.rl_only_base must be persistent or resync, got one_step",
    ),
    ({"method.bridge.compare_with": ("penalty",)}, "got 'penalty'"),
    ({"rl.dual_clip": 1.0}, "rl.dual_clip must be above 1, got 1.0"),
    (
      {"rl.dual_clip": 3.0, "rl.clip": "weight"},
      "got 3.0 with rl.clip weight",
    ),
    (
      {"rl.dual_clip": 3.0, "method.bridge.hypergradient": "unrolled"},
      "rl.dual_clip must be None with method.bridge.surrogate=dice, which has "
      "no clip, got 3.0",
    ),
    (
      {"rl.kl_estimate": "k2", "method.bridge.hypergradient": "unrolled"},
      "rl.kl_estimate must be k3 or reward, got k2",
    ),
    (
      {
        "method.bridge.penalty_schedule": "adaptive",
        "method.bridge.penalty": 1.0,
      },
      "method.bridge.penalty must be from 0.01 to 0.99 where it is adaptive, "
      "got 1.0",
    ),
    (
      {"method.bridge.hypergradient": "unrolled", "model.attention": "cudnn"},
      "model.attention=cudnn has first ones only",
    ),
    (
      {
        "method.bridge.hypergradient": "unrolled",
        "optimizer.base.eps_root": 0.0,
      },
      "the optimiser of base has no finite derivative at a zero gradient",
    ),
    ({"logging.profile_steps": (3, 2)}, "counted from 1, got 3, 2"),
    ({"mesh.data": 8}, "the number of devices"),
    ({"adapter.targets": ("q", "query")}, "query"),
    (
      {"data.max_prompt_tokens": 1},
      "data.max_prompt_tokens is 1, but the shortest",
    ),
    (
      {"data.max_demonstration_tokens": 5000},
      "the model has 128 positions",
    ),
    ({"reward.verifiers": ("no.such.module.f",)}, "no.such.module"),
    ({"reward.verifiers": ("regex",)}, "reward.pattern must be set"),
    (
      {"reward.verifiers": ("number", "math", "number")},
      "reward.verifiers must name each verifier once, got number 2 times",
    ),
    (
      {"reward.memory": "8..0GB"},
      "reward.memory must be a number with one of MB, GB, MiB, GiB, got "
      "'8..0GB'",
    ),
    (
      {"reward.memory": "9" * 999 + "GB"},
      "reward.memory must be a number with",
    ),
    ({"reward.memory": "-1GB"}, "reward.memory must be a number with one of"),
    ({"reward.memory": "1MB"}, "reward.memory must be at least 256MB, got 1MB"),
    ({"reward.deadline_s": math.inf}, "reward.deadline_s must be a finite"),
    (
      {"reward.weights": (1e39,)},
      "reward.weights must be numbers below 1e30 in size, got 1e+39",
    ),
    (
      {"reward.weights": (math.nan,)},
      "reward.weights[0] must be a finite number, got nan",
    ),
    ({"data.questions.task": "arithmetics"}, "arithmetics"),
    ({"resume": True}, "resume"),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_broken_rules_are_named_with_their_values(directory, change, sentence):
  settings = tiny_run.settings(directory, "unused")
  for name, value in change.items():
    group, _, field = name.rpartition(".")
    target = settings
    for part in filter(None, group.split(".")):
      target = target[part]
    target[field] = value
  assert sentence in _refused(settings)
  assert not (directory / "unused" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
  ("lines", "sentence"),
  [
    (None, "does not exist"),
    ([], "no examples"),
    (['{"question": "1+1", "answer": "2"}', "{oops"], "line 2 is not JSON"),
    (['{"answer": "2"}'], "lacks the field 'question'"),
  ],
  ids=["missing", "empty", "not_json", "lacks_a_field"],
)
def test_bad_data_files_are_named_with_the_line(directory, lines, sentence):
  path = directory / "data.jsonl"
  path.unlink(missing_ok=True)
  if lines is not None:
    path.write_text("\n".join(lines))
  settings = tiny_run.settings(directory, "unused")
  settings.data.questions.task = None
  settings.data.questions.count = None
  settings.data.questions.path = str(path)
  message = _refused(settings)
  assert sentence in message
  assert str(path) in message


def test_weights_that_do_not_fit_are_refused(directory, tmp_path):
  tiny_run.weights(tmp_path)
  policy = tmp_path / "policy"
  settings = tiny_run.settings(tmp_path, "unused")
  fields = json.loads((policy / "config.json").read_text())
  (policy / "config.json").write_text(json.dumps(fields | {"vocab_size": 63}))
  assert "must have shape" in _refused(settings)
  small = tiny_run.weights(tmp_path / "small", vocab_size=9)
  settings.model.weights = str(small)
  assert "the tokenizer" in _refused(settings)
  settings.model.weights = str(policy)
  (policy / "config.json").write_text(
    json.dumps(fields | {"model_type": "mamba"})
  )
  assert "mamba" in _refused(settings)
  (policy / "config.json").write_text(json.dumps(fields))
  (policy / "model.safetensors").unlink()
  assert "safetensors" in _refused(settings)
  settings.model.weights = str(tmp_path / "nowhere")
  assert "nowhere" in _refused(settings)


def test_a_run_dir_that_cannot_be_written_or_is_used_is_refused(directory):
  (directory / "file").write_text("")
  settings = tiny_run.settings(directory, "file/run")
  assert "file/run" in _refused(settings)
  used = directory / "used"
  used.mkdir()
  (used / "metrics.jsonl").write_text('{"step": 0}\n')
  assert "unused" in _refused(tiny_run.settings(directory, "used"))


def _command(*arguments: str) -> tuple[int, str]:
  done = subprocess.run(
    [sys.executable, "-m", "bilevel_jax.main", *arguments],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
    timeout=processes.PATIENCE_S,
    check=False,
  )
  assert done.stdout == ""
  return done.returncode, done.stderr


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ([], "--config must name a config file"),
    (["--config", "configs/no_such_file.py"], "no_such_file.py"),
    (
      ["--config", "configs/quickstart.py", "--config.rollout.sample=3"],
      "rollout.sample is not a field",
    ),
    (
      ["--config", "configs/quickstart.py", "--config.steps=many"],
      "many",
    ),
    (["--config", "configs/quickstart.py", "surplus"], "surplus"),
    (
      ["--config", "configs/quickstart.py", "--config.method.penalty=0.3"],
      "method.penalty is not a field, did you mean method.bridge.penalty?\n",
    ),
    (
      ["--config", "configs/methods.py:chrod"],
      "configs/methods.py:NAME takes alternating, bridge, chord, ",
    ),
    (["--config=configs/methods.py"], "two_stage, got no name\n"),
  ],
  ids=[
    "none",
    "missing",
    "misspelt",
    "wrong_type",
    "surplus",
    "moved",
    "no_such_name",
    "no_name",
  ],
)
def test_the_command_line_answers_with_one_sentence(arguments, sentence):
  code, said = _command(*arguments)
  assert code == 2, said
  assert said.startswith("error: ")
  assert len(said.strip().splitlines()) == 1, said
  assert sentence in said


def test_every_broken_rule_of_a_method_is_said_before_anything_is_read(
  tmp_path,
):
  (tmp_path / "five.py").write_text("""
from configs import quickstart

def get_config():
  c = quickstart.start()
  c.model.weights = "there are none"
  c.method.bridge.hypergradient = "one_step"
  c.method.bridge.gain_weight = 0.5
  c.method.bridge.compare_with = ("nonsense",)
  c.method.bridge.penalty_schedule = "adaptive"
  c.method.bridge.penalty = 0.0
  return c
""")
  code, said = _command("--config", str(tmp_path / "five.py"))
  assert code == 2
  lines = said.removeprefix("error: ").strip().splitlines()
  for line, words in zip(
    lines,
    [
      "method.bridge.gain_weight must be 1 unless",
      "method.bridge.compare_with must name hypergradients other than",
      "method.bridge.rl_only_base must be one_step, got persistent",
      "which the hypergradient one_step does not measure",
      "method.bridge.penalty must be from 0.01 to 0.99",
    ],
    strict=True,
  ):
    assert words in line
  assert "there are none" not in said


@pytest.mark.parametrize("name", ["chrod", "no.such.module.build"])
def test_a_method_that_does_not_exist_is_refused_with_the_settings(
  directory, name
):
  settings = tiny_run.settings(directory, "unused")
  settings.method.name = name
  with pytest.raises(errors.ConfigError, match=f"^method.name.*{name}"):
    config.parse(settings)


@pytest.fixture
def read(tmp_path, monkeypatch):
  """Reads the settings of a file with a module beside it, and changes.

  `line` is in the file's get_config, `name` is what follows its colon.
  """
  (tmp_path / "beside_the_config.py").write_text("""
import dataclasses
from bilevel_jax.fields import setting
from bilevel_jax.methods import grpo

STEPS = 7

@dataclasses.dataclass(frozen=True)
class Options:
  weight: float = setting(0.0, "of the SFT loss")
  sizes: tuple[int, ...] = setting((), "of groups")

def build(options, setup):
  return grpo.build(None, setup)
""")
  monkeypatch.delitem(sys.modules, "beside_the_config", raising=False)
  monkeypatch.setattr(sys, "path", [*sys.path])
  monkeypatch.setattr(sys, "argv", [])

  def read(*changes, line="", name=None):
    path = tmp_path / "own.py"
    path.write_text(f"""
import beside_the_config
from bilevel_jax import config

def get_config({"" if name is None else "name"}):
  c = config.default_config()
  c.steps = beside_the_config.STEPS
  c.model.preset = "smollm2-135m"
  c.data.questions.task = "arithmetic"
  c.method.name = "beside_the_config.build"
  c.method.options = {{"weight": 1.0}}
  {line}
  return c
""")
    after = "" if name is None else f":{name}"
    with flagsaver.flagsaver():
      given = ["main", f"--config={path}{after}", *changes]
      return main.read_settings(main.parse_flags(given))

  return read


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_config_file_may_import_what_lies_beside_it(read):
  assert read().steps == 7


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_config_file_may_take_a_name(read):
  settings = read(
    "--config.steps=9", line="c.run_dir = f'runs/{name}'", name="a/b"
  )
  assert (settings.run_dir, settings.steps) == ("runs/a/b", 9)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
  ("line", "sentence"),
  [
    (
      "c.method.penalty = 0.3",
      "penalty is not a field, did you mean method.bridge.penalty?",
    ),
    (
      "x = c.method.penalty",
      "penalty is not a field, did you mean method.bridge.penalty?",
    ),
    (
      "c.rollout.update({'sampels_per_prompt': 3})",
      "sampels_per_prompt is not a field, did you mean samples_per_prompt?",
    ),
    ("c.metod.name = 'sft'", "metod is not a field, did you mean method?"),
    ("c.steps = int('many')", "ValueError: invalid literal"),
    ("{}['key']", "KeyError: key"),
  ],
)
def test_an_error_of_a_config_file_has_its_line(read, line, sentence):
  with pytest.raises(errors.ConfigError) as caught:
    read(line=line)
  where, _, said = str(caught.value).partition(": ")
  assert where.endswith("own.py, line 12")
  assert said.startswith(sentence)
  assert "\n" not in said


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_what_a_config_file_raises_about_its_name_is_said_as_it_is(read):
  line = "from bilevel_jax import errors; raise errors.ConfigError(name)"
  with pytest.raises(errors.ConfigError, match=r"^no such thing$"):
    read(line=line, name="no such thing")
  with pytest.raises(
    errors.ConfigError, match=r"^--config: TypeError: get_config\(\) tak"
  ):
    main.parse_flags(["main", "--config=configs/quickstart.py:name"])


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_second_config_file_has_nothing_of_the_first(tmp_path):
  (tmp_path / "one.py").write_text(
    "from bilevel_jax import config\nget_config = config.default_config\n"
  )
  (tmp_path / "two.py").write_text("LIMIT = 3\n")
  with flagsaver.flagsaver():
    main.parse_flags(["main", f"--config={tmp_path}/one.py"])
  with (
    flagsaver.flagsaver(),
    pytest.raises(errors.ConfigError, match="get_con"),
  ):
    main.parse_flags(["main", f"--config={tmp_path}/two.py"])


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_fields_can_be_none_and_groups_of_ones_own_can_grow(read):
  settings = read(
    "--config.rl.importance_cap=None",
    "--config.method.options.weight=2",
    "--config.method.options.sizes=(1,2)",
    "--config.data.questions.fields.question=problem",
  )
  assert settings.rl.importance_cap is None
  options = settings.method.options
  assert dataclasses.asdict(options) == {"weight": 2.0, "sizes": (1, 2)}
  assert settings.data.questions.fields == {"question": "problem"}


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_options_of_a_method_of_ones_own_are_checked(read):
  with pytest.raises(
    errors.ConfigError,
    match=r"^method.options.wieght is not a field, did you mean weight\?$",
  ):
    read("--config.method.options.wieght=2")
  with pytest.raises(errors.ConfigError, match="weight must be a number, got"):
    read("--config.method.options.weight=heavy")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_what_cannot_be_none_says_so(read):
  with pytest.raises(errors.ConfigError, match="steps must be an integer, got"):
    read("--config.steps=None")
  with pytest.raises(errors.ConfigError, match="must be followed by =VALUE"):
    read("--config.method.options.weight")


def test_help_says_how_to_set_a_field_and_nothing_of_absl(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "__main__", main)
  with pytest.raises(SystemExit) as ended:
    main.parse_flags(["main", "--help"])
  said = capsys.readouterr().out
  assert ended.value.code == 0
  assert "--config.FIELD=VALUE" in said
  assert "absl" not in said
  assert max(map(len, said.splitlines())) <= 80
