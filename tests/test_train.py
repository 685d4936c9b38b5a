"""Whole runs of a tiny policy: what they leave, learn, spend and refuse."""

import json
import pathlib
import re
from typing import Any

import chex
import numpy as np
import pytest

from bilevel_jax import errors, train
from bilevel_jax.data import tasks
from bilevel_jax.training import meshes, sources, throughput
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("programs_of_any_name")


def _logged(settings, name="metrics.jsonl"):
  return tiny_run.logged(settings.run_dir, name)


def test_a_run_leaves_its_files_and_learns(directory):
  settings = tiny_run.parsed(
    directory,
    "whole",
    steps=12,
    rollout__stop=("00",),
    rollout__total_tokens=80,
  )
  last = train.run(settings)
  assert last.number == 12
  left = {path.name for path in pathlib.Path(settings.run_dir).iterdir()}
  assert left == {
    "config.json",
    "metrics.jsonl",
    "completions.jsonl",
    "answers.jsonl",
    "checkpoints",
    "export",
    "report.html",
  }
  logged = _logged(settings)
  assert [line["step"] for line in logged] == list(range(13))
  for name in (
    "rl/reward",
    "rl/pass_at_group",
    "rl/entropy",
    "rl/clip_fraction",
    "rl/kl_to_reference",
    "rl/gradient_norm",
    "rollout/length",
    "rollout/truncated_share",
    "sft/loss",
    "sft/gradient_norm",
    "bilevel/cooperative_gain",
    "bilevel/cooperative_gain_se",
    "bilevel/kl_to_rl_only",
    "bilevel/rl_only_clip_fraction",
    "bilevel/gradient_cosine",
    "bilevel/adapter_delta_norm",
  ):
    assert np.isfinite([line[name] for line in logged[1:]]).all(), name
  # The two policies are one, but two programs score them: an ulp of a log-prob
  # is a KL of half its square, and which CPU rounds alike is not ours to say.
  ulp = np.finfo(np.float32).eps
  assert 0 <= logged[1]["rl/kl_to_reference"] < ulp**2
  assert abs(logged[1]["bilevel/cooperative_gain"]) < 4 * ulp
  assert logged[-1]["bilevel/kl_to_rl_only"] > 0.0
  # The adapter's gradient is the sum of its two parts: law of cosines.
  direct, gain = (
    logged[-1][f"bilevel/{p}_norm"] for p in ("direct", "implicit")
  )
  np.testing.assert_allclose(
    logged[-1]["optimizer/adapter_gradient_norm"] ** 2,
    direct**2
    + gain**2
    + 2 * direct * gain * logged[-1]["bilevel/parts_cosine"],
    rtol=1e-4,
  )
  losses = [line["sft/loss"] for line in logged[1:]]
  assert losses[-1] < losses[0]
  before, after = (logged[i]["rl/reward"] for i in (1, -1))
  assert after > before
  assert max(line["rollout/tokens"] for line in logged[1:]) <= 80
  assert max(line["rollout/cut_by_total"] for line in logged[1:]) > 0
  texts = [row["completion"] for row in _logged(settings, "completions.jsonl")]
  assert not [text for text in texts if "00" in text[:-1]]


def test_a_run_ends_with_its_operations_and_tells_what_it_spent(directory):
  """Tokens are characters: each step's gradient is of all ten solutions."""
  questions = tasks.generate(
    "arithmetic", count=10, options={"steps": 1, "max_operand": 9}
  )
  # A token for each character, one for the line's end after a question, and one
  # for the answer's, which is not read.
  prompts = np.array([len(q.question) + 1 for q in questions])
  answers = np.array([len(q.solution or "") + 1 for q in questions])
  read = prompts + answers - 1
  forward = throughput.forward_flops(
    tiny_run.ARCHITECTURE,
    tokens=read.sum(),
    context=(read * (read + 1) // 2).sum(),
    logits=answers.sum(),
  )
  changes: dict[str, Any] = {
    "method__name": "sft",
    "data__demonstrations_per_step": 10,
    "data__demonstration_share": 1.0,
    "training__packing": "off",
    "training__max_update_flops": float(4.5 * forward),
  }
  train.run(tiny_run.parsed(directory, "operations", **changes))
  logged = _logged(tiny_run.parsed(directory, "operations"))
  spent = [line.get("training/update_flops_so_far") for line in logged]
  assert spent == [None, 3 * forward, 6 * forward]
  with pytest.raises(train.TrainingStopped, match="max_update_flops"):
    train.run(tiny_run.parsed(directory, "operations", resume=True, **changes))


def test_operations_that_are_not_counted_are_no_budget(directory):
  settings = tiny_run.parsed(
    directory,
    "uncounted",
    method__bridge__hypergradient="unrolled",
    training__max_update_flops=1.0,
  )
  with pytest.raises(errors.ConfigError, match="whose operations are counted"):
    train.run(settings)


def test_updates_that_stay_non_finite_end_the_run(directory):
  settings = tiny_run.parsed(
    directory,
    "nan",
    optimizer__base__learning_rate=1e30,
    optimizer__base__clip_norm=None,
    training__max_skipped_in_a_row=2,
    steps=20,
  )
  with pytest.raises(train.TrainingStopped, match="2 updates in a row"):
    train.run(settings)


def test_a_share_of_the_questions_is_of_those_with_a_demonstration(
  directory, capsys
):
  """One question in ten has one, and half of those that are asked."""
  changes = {
    "method__name": "hpt",
    "data__demonstration_share": 0.1,
    "data__questions__count": 10,
    "data__prompts_per_step": 4,
  }
  settings = tiny_run.parsed(
    directory, "share", data__paired_questions_share=0.5, **changes
  )
  train.run(settings)
  logged = [line for line in _logged(settings) if line["step"]]
  assert {line["mix/demonstrated_questions"] for line in logged} == {0.5}
  for line in logged:
    learned = 4 * line["mix/sft_questions"]
    assert line["sft/demonstrations"] == learned <= 2
  opening = " ".join(capsys.readouterr().out.split())
  assert "1 of 10 questions" in opening
  assert "from which 50% of those asked come" in opening


@pytest.mark.parametrize(
  ("share", "having", "told"),
  [
    (0.5, 0.0, "needs a question with a demonstration of its own, got 0 of"),
    (0.5, 1.0, "needs a question without a demonstration of its own, got 10"),
  ],
)
def test_a_share_of_questions_that_are_not_there_is_refused(
  directory, share, having, told
):
  settings = tiny_run.parsed(
    directory,
    "refused-share",
    method__name="mixed",
    data__questions__count=10,
    data__demonstration_share=having,
    data__paired_questions_share=share,
  )
  with pytest.raises(errors.ConfigError, match=told):
    train.run(settings)


@pytest.mark.parametrize("method", ["sft", "luffy"])
def test_every_method_runs_by_its_name(directory, method):
  settings = tiny_run.parsed(
    directory,
    method,
    method__name=method,
    steps=2,
    logging__profile_steps=(2,),
  )
  last = train.run(settings)
  assert last.number == 2
  assert last.after is not None
  profile = pathlib.Path(settings.run_dir) / "profile"
  assert len(list(profile.rglob("*.xplane.pb"))) == 1


def test_questions_are_added_in_the_place_of_those_that_say_nothing(directory):
  settings = tiny_run.parsed(
    directory,
    "dapo",
    method__name="grpo",
    steps=3,
    rollout__rounds_for_signal=3,
    rollout__max_new_tokens=2,  # so few tokens that groups are often equal
    rl__truncated="drop",
    reward__overlong_tokens=2,
  )
  train.run(settings)
  logged = _logged(settings)[1:]
  sampled = [line["rollout/questions"] for line in logged]
  assert set(sampled) <= {3, 6, 9}
  assert max(sampled) > 3
  for line, questions in zip(logged, sampled, strict=True):
    assert questions == 9 or line["rollout/groups_with_signal"] == 3
    assert line["rl/overlong_penalty"] <= -0.5
    assert line["rl/truncated_out"] > 0
  _, _, host = tiny_run.last_state(settings)
  assert host["questions"] == sum(sampled)
  assert host["tokens"] == sum(line["rollout/tokens"] for line in logged)


@pytest.mark.parametrize("form", ["unrolled", "one_step"])
def test_every_hypergradient_trains_the_adapter(directory, form):
  settings = tiny_run.parsed(
    directory,
    form,
    steps=2,
    method__bridge__hypergradient=form,
    method__bridge__rl_only_base="one_step",
  )
  train.run(settings)
  lines = (directory / form / "metrics.jsonl").read_text().splitlines()
  last = json.loads(lines[-1])
  assert last["bilevel/implicit_norm"] > 0
  assert last["bilevel/adapter_delta_norm"] > 0
  assert np.isfinite(list(last.values())).all()
  assert ("bilevel/cooperative_gain" in last) == (form == "unrolled")


def test_sft_without_demonstrations_is_refused(directory):
  settings = tiny_run.parsed(
    directory,
    "none",
    method__name="sft",
    data__demonstrations_per_step=0,
  )
  with pytest.raises(errors.ConfigError, match="demonstrations_per_step must"):
    train.run(settings)


def test_a_merged_run_ends_with_what_it_was_to_add(directory):
  """Nothing of either branch is added: the start is what is left."""
  settings = tiny_run.parsed(
    directory,
    "merged",
    steps=2,
    method__name="merge",
    method__merge__rl_weight=0.0,
    method__merge__sft_weight=0.0,
  )
  train.run(settings)
  model = sources.build_model(settings, sources.open_model(settings))
  mesh, _ = meshes.make(settings, model.architecture)
  start = sources.read_base(model, mesh)
  _, state, _ = tiny_run.last_state(settings)
  chex.assert_trees_all_close(state.base, start, atol=1e-6)


def test_a_reward_that_never_works_stops_the_run_and_says_why(
  directory, capsys
):
  settings = tiny_run.parsed(
    directory,
    "unscored",
    reward__verifiers=("tests.tiny_run.broken",),
    data__evaluation__task=None,
  )
  with pytest.raises(train.TrainingStopped, match="of the last 3 steps could"):
    train.run(settings)
  said = capsys.readouterr().out
  assert said.count("KeyError: 'gold'") == 1  # the first one, once
  assert "12 not scored" in said
  assert "reward 0.000" not in said  # it is no mean of anything
  assert not [
    x for x in tiny_run.logged(directory / "unscored") if "rl/reward" in x
  ]
  failures = (directory / "unscored" / "reward_failures.txt").read_text()
  assert failures.count("KeyError: 'gold'") == 3 * 12
  assert "step 3: tests.tiny_run.broken raised" in failures


def test_failures_of_every_round_and_evaluation_are_on_file(directory):
  changes = {
    "steps": 1,
    "reward__verifiers": ("tests.tiny_run.broken",),
    "rollout__rounds_for_signal": 2,
    "data__prompts_per_step": 2,
  }
  settings = tiny_run.parsed(directory, "rounds", **changes)
  with pytest.raises(train.TrainingStopped, match="of the last 1 steps could"):
    train.run(settings)
  path = directory / "rounds" / "reward_failures.txt"
  entries = re.findall(r"^step [^:]*: ", path.read_text(), re.MULTILINE)
  assert entries == [
    *["step 0, evaluation: "] * 5,
    *["step 1: "] * 2 * 2 * 4,
    *["step 1, evaluation: "] * 5,
  ]
  # It was killed before its first checkpoint: it starts over, and so does this.
  with pytest.raises(train.TrainingStopped, match="of the last 1 steps could"):
    train.run(tiny_run.parsed(directory, "rounds", resume=True, **changes))
  again = re.findall(r"^step [^:]*: ", path.read_text(), re.MULTILINE)
  assert again == entries
