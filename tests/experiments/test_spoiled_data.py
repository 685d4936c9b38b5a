"""What the studies of spoiled demonstrations give to a run."""

import collections
import copy
import json
import pathlib

import pytest

from bilevel_jax import config
from bilevel_jax.data import corpora
from bilevel_jax.rewards import verifiers
from experiments.engine import plan
from experiments.studies import spoiled, svamp
from experiments.studies.parts import spoiled_arms, svamp_data


def _given(settings):
  return corpora.load(config.parse(settings).data.demonstrations)


def test_the_studies_can_be_planned_and_each_arm_has_its_data():
  study = spoiled.get_study()
  plan.check(study)
  plan.check(spoiled.get_study(quick=True))
  for name, regime in study.regimes.items():
    jobs = plan.final(study, name, {})
    for arm in regime.arms:
      if arm != "base":
        seeds = [
          jobs[arm][seed].settings.data.demonstrations for seed in (1, 2)
        ]
        assert seeds[1].first - seeds[0].first == seeds[0].count, (name, arm)


@pytest.mark.parametrize(
  ("regime", "kinds"),
  [
    ("clean", {"worked"}),
    ("guess 75%", {"worked", "guess"}),
    ("slip 25%", {"worked", "slip"}),
    ("wrong_answer 50%", {"worked", "wrong_answer"}),
    ("other_operation 75%", {"worked", "other_operation"}),
  ],
)
def test_a_regime_has_its_kind_and_share(regime, kinds):
  study = spoiled.get_study()
  found = []
  for seed in range(1, 6):
    job = plan.final(study, regime, {})["mixed"][seed]
    found += [q.meta["kind"] for q in _given(job.settings)]
  counts = collections.Counter(found)
  assert set(counts) == kinds
  share = 1 - counts["worked"] / len(found)
  wanted = 0 if regime == "clean" else float(regime.split()[1][:-1]) / 100
  assert share == pytest.approx(wanted, abs=0.08)


def _prepared(name, regime, tmp_path, earlier=None):
  study = spoiled.get_study()
  job = plan.final(study, regime, {})[name][1]
  settings = copy.deepcopy(job.settings)
  job.prepare(settings, tmp_path, earlier)
  return job.settings, settings


def test_the_oracle_has_the_worked_ones_of_the_same_run(tmp_path):
  before, after = _prepared(spoiled_arms.ORACLE, "guess 50%", tmp_path)
  worked = [q for q in _given(before) if q.meta["kind"] == "worked"]
  assert [q.question for q in _given(after)] == [q.question for q in worked]
  assert 20 < len(worked) < 44


def test_a_checker_keeps_right_answers_alone(tmp_path):
  before, after = _prepared(spoiled_arms.CHECKED, "wrong_answer 50%", tmp_path)
  kept = _given(after)
  assert {q.meta["kind"] for q in kept} == {"worked"}
  every = _given(before)
  assert len(kept) == sum(q.meta["kind"] == "worked" for q in every)
  # It has nothing to find among guesses and slips: they end in the answer.
  for regime in ("guess 75%", "slip 75%"):
    assert spoiled_arms.CHECKED not in spoiled.get_study().regimes[regime].arms
    job = plan.final(spoiled.get_study(), regime, {})["mixed"][1]
    assert all(
      verifiers.exact(q.solution, q) == 1 for q in _given(job.settings)
    )


def test_a_router_asks_the_demonstrations_questions_too(tmp_path):
  before, after = _prepared("hpt", "guess 50%", tmp_path)
  own = {q.question for q in _given(before)}
  asked = corpora.load(config.parse(after).data.questions)
  assert own <= {q.question for q in asked}
  assert len(asked) == 2000 + len(own)
  assert 0 < after.data.paired_questions_share < 1


def test_permuted_weights_are_the_same_ones_elsewhere(tmp_path):
  earlier = tmp_path / "earlier"
  earlier.mkdir()
  before, _ = _prepared("mixed, good ones alone", "guess 50%", tmp_path)
  rows = [
    {"id": q.id, "question": q.question, "mean_weight": n / 10}
    for n, q in enumerate(_given(before))
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (earlier / "demonstrations.jsonl").write_text(text)
  found = {}
  for name in ("its mean weights, fixed", "its mean weights, permuted"):
    _, after = _prepared(name, "guess 50%", tmp_path, earlier)
    path = pathlib.Path(after.data.demonstrations.weights)
    found[name] = [json.loads(line) for line in path.read_text().splitlines()]
  fixed, permuted = found.values()
  assert [row["weight"] for row in fixed] == [r["mean_weight"] for r in rows]
  assert [row["id"] for row in permuted] == [row["id"] for row in rows]
  weights = [row["weight"] for row in permuted]
  assert sorted(weights) == [row["mean_weight"] for row in rows]
  assert weights != sorted(weights)


def test_half_of_svamp_s_demonstrations_are_spoiled_and_a_checker_passes_all(
  tmp_path, monkeypatch
):
  numbers = ([3, 5, 8, 3, 5, 8, 13] * 150)[:1000]
  file = tmp_path / "svamp.jsonl"
  file.write_text(
    "".join(
      json.dumps(
        {
          "id": str(n),
          "question": f"question {n}?",
          "answer": str(answer),
          "solution": f"{answer + n} - {n} = {answer}",
        }
      )
      + "\n"
      for n, answer in enumerate(numbers)
    )
  )
  monkeypatch.setenv("SVAMP", str(file))
  study = svamp.get_study()
  plan.check(study)
  seeds = []
  for seed in (1, 2):
    settings = copy.deepcopy(study.settings)
    settings.seed = seed
    svamp_data.half_spoiled(settings, tmp_path, None)
    found = _given(settings)
    seeds.append([q.question for q in found])
    kinds = collections.Counter(q.meta["kind"] for q in found)
    assert kinds["equation"] == svamp_data.DEMONSTRATIONS / 2
    assert kinds["other"] > 0
    assert kinds["bare"] > 0
    for question in found:
      assert verifiers.number(question.solution, question) == 1
      own = f"- {question.question.split()[1][:-1]} ="
      assert (own in question.solution) == (question.meta["kind"] == "equation")
    good = [q.question for q in found if q.meta["kind"] == "equation"]
    again = copy.deepcopy(study.settings)
    again.seed = seed
    svamp_data.good_alone(again, tmp_path, None)
    assert [q.question for q in _given(again)] == good
  assert seeds[0] != seeds[1]
