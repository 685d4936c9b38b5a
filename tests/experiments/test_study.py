"""A study does every run once, goes on where it was, and says what it found."""

import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bilevel_jax import config, errors
from bilevel_jax.runs import finished, records
from experiments import study as tool
from experiments.engine import (
  document,
  findings,
  learned,
  numbers,
  plan,
  work,
)
from tests import tiny_run

TESTS = ("same", "harder")


def make_study(settings, arms, **changes):
  return plan.Study(
    **{
      "name": "tiny",
      "about": "A tiny study.",
      "settings": settings,
      "stages": {},
      "regimes": {"B": plan.Regime(about="a start", stages=(), arms=arms)},
      "tests": dict.fromkeys(TESTS, config.Source()),
      "test_tokens": 8,
      "verifier": "exact",
      "tables": {
        plan.MAIN: plan.Table(about="All of them.", seeds=(1, 2)),
        "ablations": plan.Table(
          about="One change each.", seeds=(1,), reference="grpo"
        ),
      },
      "tuning_seed": 0,
      "reference": "bridge",
      **changes,
    }
  )


ARMS = {
  "base": plan.Arm(changes=None),
  "bridge": plan.Arm(
    changes={"method.name": "bridge"},
    search=(
      {"optimizer.base.learning_rate": 1e-4},
      {"optimizer.base.learning_rate": 1e-3},
    ),
  ),
  "grpo": plan.Arm(changes={"method.name": "grpo"}),
  "rank 2": plan.Arm(
    changes={"adapter.rank": 2}, tuned_as="bridge", table="ablations"
  ),
}


def staged(study):
  return plan.Study(
    **{
      **{f: getattr(study, f) for f in study.__dataclass_fields__},
      "stages": {"start": study.settings},
      "regimes": {
        "B": plan.Regime(about="a start", stages=("start",), arms=ARMS)
      },
    }
  )


def test_an_ablation_takes_over_what_its_method_was_tuned_to(tmp_path):
  study = staged(make_study(tiny_run.settings(tmp_path), ARMS))
  assert list(plan.tuning(study, "B", {})) == ["bridge"]
  rates = [
    (job.settings.optimizer.base.learning_rate, job.settings.seed)
    for job in plan.tuning(study, "B", {})["bridge"]
  ]
  assert rates == [(1e-4, 0), (1e-3, 0)]
  chosen = {"bridge": {"optimizer.base.learning_rate": 1e-3}}
  final = plan.final(study, "B", chosen)
  assert {arm: list(jobs) for arm, jobs in final.items()} == {
    "base": [1],
    "bridge": [1, 2],
    "grpo": [1, 2],
    "rank 2": [1],
  }
  for arm in ("bridge", "rank 2"):
    job = final[arm][1]
    assert job.settings.optimizer.base.learning_rate == 1e-3
    assert (job.settings.seed, job.tested, job.train) == (1, True, True)
  assert final["rank 2"][1].settings.adapter.rank == 2
  assert not final["base"][1].train
  # The settings that all share are as they were.
  assert study.settings.seed == 0


def test_an_arm_waits_for_the_search_that_it_takes_a_setting_from(tmp_path):
  searched = tuple({"optimizer.base.learning_rate": r} for r in (1e-4, 1e-3))
  taken = "method.sft_then_rl.sft_learning_rate"
  arms = {
    "sft": plan.Arm(changes={"method.name": "sft"}, search=searched),
    "both": plan.Arm(
      changes={"method.name": "sft_then_rl"},
      search=searched,
      takes={taken: ("sft", "optimizer.base.learning_rate")},
    ),
    "better": plan.Arm(changes=None, start="first"),
  }
  start = plan.Regime(about="a start", stages=("first", "start"), arms=arms)
  study = make_study(
    tiny_run.settings(tmp_path), arms, regimes={"B": start}, reference="both"
  )
  assert list(plan.tuning(study, "B", {})) == ["sft"]
  chosen: dict[str, Any] = {"sft": {"optimizer.base.learning_rate": 1e-3}}
  rates = [
    (job.settings.optimizer.base.learning_rate, job.settings.method.sft_then_rl)
    for job in plan.tuning(study, "B", chosen)["both"]
  ]
  assert [(r, both.sft_learning_rate) for r, both in rates] == [
    (1e-4, 1e-3),
    (1e-3, 1e-3),
  ]
  chosen["both"] = {"optimizer.base.learning_rate": 1e-4}
  final = plan.final(study, "B", chosen)
  options = final["both"][2].settings
  assert options.method.sft_then_rl.sft_learning_rate == 1e-3
  assert options.optimizer.base.learning_rate == 1e-4
  starts = {arm: jobs[1].start for arm, jobs in final.items()}
  assert starts == {
    "sft": "policies/start",
    "both": "policies/start",
    "better": "policies/first",
  }


def found(same, harder, **more):
  tests = {
    name: {
      "accuracy": [np.mean([int(c) for c in right]), 0.0, 1.0],
      "right": right,
      "tokens": 3.0,
    }
    for name, right in zip(TESTS, (same, harder), strict=True)
  }
  spent = {"steps": 4.0, "tokens": 100.0, "seconds": 2.0}
  return {"tests": tests, "spent": spent, "means": {}, "last": {}, **more}


def test_the_numbers_are_those_of_the_runs(tmp_path):
  study = make_study(tiny_run.settings(tmp_path), ARMS)
  results = {
    "base": {1: found("0000", "0000")},
    "bridge": {1: found("1111", "1100"), 2: found("1110", "1000")},
    "grpo": {1: found("1100", "1100"), 2: None},
    "rank 2": {1: found("1000", "0000")},
  }
  search = {"bridge": {"chosen": {"optimizer.base.learning_rate": 1e-3}}}
  arms = numbers.summarise(study, "B", search, results)["arms"]
  value, low, high = arms["bridge"]["tests"]["same"]
  half = stats.t.ppf(0.975, 1) * 0.125
  assert (value, low, high) == pytest.approx(
    (0.875, 0.875 - half, 0.875 + half)
  )
  against = arms["grpo"]["reference_minus_this"]["same"]
  assert against["difference"][0] == 0.5  # seed 1 alone is in both
  assert arms["base"]["reference_minus_this"]["same"]["difference"][0] == 0.875
  # A table may have a reference of its own.
  assert arms["rank 2"]["reference_minus_this"]["same"]["difference"][0] == 0.25
  assert (arms["grpo"]["seeds"], arms["grpo"]["seeds_wanted"]) == ([1], 2)


def test_questions_are_told_apart_by_what_the_base_can_do(tmp_path):
  study = make_study(
    tiny_run.settings(tmp_path), ARMS, base="base", pass_rate_samples=4
  )
  sampled = {"right_of_samples": "0 0 1 4", "lengths": "1 1 1 1"}
  results = {
    "base": {1: found("0001", "0000")},
    "bridge": {1: found("1011", "1100"), 2: found("1101", "1000")},
  }
  for name in TESTS:
    results["base"][1]["tests"][name] |= sampled
    for seed, lengths in ((1, "2 4 6 8"), (2, "4 4 8 8")):
      results["bridge"][seed]["tests"][name]["lengths"] = lengths
  arms = numbers.summarise(study, "B", {}, results)["arms"]
  assert arms["bridge"]["by_pass_rate"]["same"] == [
    {
      "above": above,
      "up_to": up_to,
      "questions": questions,
      "accuracy": accuracy,
      "tokens": tokens,
    }
    for above, up_to, questions, accuracy, tokens in (
      (0.0, 0.0, 2, 0.75, 3.5),
      (0.0, 0.25, 1, 0.5, 7.0),
      (0.75, 1.0, 1, 1.0, 8.0),
    )
  ]


def test_how_far_an_arm_comes_is_of_each_seed(tmp_path):
  arms = ARMS | {"oracle": plan.Arm(changes={"method.name": "mixed"})}
  study = make_study(tiny_run.settings(tmp_path), arms, oracle="oracle")
  results = {
    "bridge": {1: found("1000", "0000"), 2: found("0000", "1000")},
    "oracle": {1: found("1111", "1100"), 2: found("1110", "1000")},
    "grpo": {1: found("1100", "1100"), 2: found("1111", "0000")},
  }
  whole = {"regimes": {"B": numbers.summarise(study, "B", {}, results)}}
  way = whole["regimes"]["B"]["arms"]["grpo"]["of_the_way"]
  # Of no way at all there is no share.
  assert way == {"same": pytest.approx([1 / 3, 4 / 3]), "harder": [1.0]}
  fill = lambda text: findings.fill(text, whole)
  assert fill("[[B / grpo / same / way]]") == "83%"
  more = fill("[[B / grpo / same / more]]")
  less = fill("[[B / grpo / same / difference]]")
  assert more.startswith("+62.5%")
  assert less.startswith("-62.5%")


def test_a_summary_is_a_page_of_its_own():
  whole = {
    "name": "tiny",
    "findings": "# It pays\n\nBy [[runs_done]] runs.",
    "command": "study",
    "json": "tiny.json",
    "runs_done": 3,
    "runs_wanted": 4,
  }
  page = document.summary(whole, "results/tiny.md", "results.png")
  assert page.startswith("# It pays\n\nBy 3 runs.\n\n![tiny](results.png)\n")
  assert "[details](results/tiny.md)" in page
  assert "![" not in document.summary(whole, "results/tiny.md", None)


def test_what_was_learned_of_demonstrations_is_by_their_group(tmp_path):
  row = '{{"group": "{}", "weight": {}, "mean_weight": 1, "times_seen": {}}}\n'
  rows = [("good", 2, 3), ("bad", 0, 1), ("bad", 3, 1), ("bad", 9, 0)]
  text = "".join(row.format(*values) for values in rows)
  (tmp_path / "demonstrations.jsonl").write_text(text)
  assert learned.weights(tmp_path, "good") == {
    "seen": 3,
    "most_seen": 3,
    "groups": {
      "bad": {"weight": 1.5, "mean_weight": 1.0},
      "good": {"weight": 2.0, "mean_weight": 1.0},
    },
    "auroc": {"weight": 0.5, "mean_weight": 0.5},
  }
  assert learned.weights(tmp_path / "none", "good") is None


def test_the_document_has_no_number_of_its_own(tmp_path):
  study = make_study(tiny_run.settings(tmp_path), ARMS)
  results = {
    "base": {1: found("0000", "0000")},
    "bridge": {1: found("1111", "1100"), 2: found("1110", "1000")},
  }
  search = {"bridge": {"chosen": {"optimizer.base.learning_rate": 1e-3}}}
  whole = {
    "name": "tiny",
    "json": "tiny.json",
    "about": "about",
    "command": "command",
    "hardware": "cpu",
    "runs_done": 3,
    "runs_wanted": 7,
    "hours": 0.25,
    "versions": "x",
    "sampled_tokens": 100,
    "steps": 4,
    "validation_questions": 5,
    "tables": {plan.MAIN: "All of them.", "ablations": "One change each."},
    "findings": "BRIDGE is at [[B / bridge / same]], the base "
    "[[B / base / same / difference]] below at rate "
    "[[B / bridge / search / optimizer.base.learning_rate]], for "
    "[[B / bridge / cost / tokens]] tokens; [[B / grpo\n/ same]]; "
    "[[runs_done]] runs, [[B / bridge / seeds]] of BRIDGE; once "
    "[[old: B / bridge / same / value]].",
    "references": study.references(),
    "tests": list(TESTS),
    "regimes": {"B": numbers.summarise(study, "B", search, results)},
  }
  whole = json.loads(json.dumps(whole))
  text = findings.fill(whole["findings"], whole, "old")
  text = document.render(whole | {"findings": text})
  against = whole["regimes"]["B"]["arms"]["base"]["reference_minus_this"]
  _, low, high = against["same"]["difference"]
  assert (
    "BRIDGE is at 87.5% (-71.3% to 246.3%), the base "
    f"+87.5% ({low:+.1%} to {high:+.1%}) below at rate 0.001, for 100 tokens; "
    "(not run); 3 runs, 2 of BRIDGE; once 87.5%."
  ) in text
  with pytest.raises(errors.ConfigError, match=r"no 'ppo' .*B / ppo / same"):
    document.render(whole | {"findings": "[[B / ppo / same]]"})
  assert "3 of 7" in text
  assert "Budget of a run: 100 sampled tokens, and at most 4 steps." in text
  without = document.render(whole | {"findings": "", "sampled_tokens": None})
  assert "Budget of a run: at most 4 steps." in without
  assert "| bridge | 2 | 0.001 | 87.5% " in text
  assert "grpo (0 of 2 seeds), rank 2 (0 of 1 seeds)" in text
  head, *rows = [line for line in text.splitlines() if line.startswith("|")]
  assert len({len(re.findall(r"\|", row)) for row in (head, rows[0])}) == 1


STUDY = """
from bilevel_jax import config
from experiments.engine import plan
from tests import tiny_run
import pathlib

def get_study(quick):
  shared = tiny_run.settings(pathlib.Path("{directory}"))
  shared.reward.verifiers = ("exact",)
  shared.checkpoints.every = None
  first = shared.copy_and_resolve_references()
  first.method.name = "sft"
  first.steps = 1
  shared.training.max_sampled_tokens = 100
  source = config.Source(
    task="arithmetic", count=5, task_options={{"steps": 1, "max_operand": 9}}
  )
  return plan.Study(
    name="tiny", about="A tiny study.", settings=shared,
    stages={{"start": first}},
    regimes={{"B": plan.Regime(about="a start", stages=("start",), arms={{
      "base": plan.Arm(changes=None),
      "sft": plan.Arm(changes={{"method.name": "sft", "steps": 2}}),
      "grpo": plan.Arm(changes={{"method.name": "grpo"}}, search=(
        {{"optimizer.base.learning_rate": 1e-3}},
        {{"optimizer.base.learning_rate": 0.0}},
      )),
    }})}},
    tests={{"test": source}}, test_tokens=8, verifier="exact",
    tables={{plan.MAIN: plan.Table(about="All of them.", seeds=(1,))}},
    tuning_seed=0, reference="sft",
  )
"""


def test_a_study_runs_once_and_goes_on_where_it_was(tmp_path, capsys):
  tiny_run.weights(tmp_path)
  file = tmp_path / "study.py"
  file.write_text(STUDY.format(directory=tmp_path))
  out = tmp_path / "out"
  command = [str(file), "--out", str(out)]
  assert tool.main([*command, "--report-only"]) == 0
  assert "sft (0 of 1 seeds)" in (out / "results.md").read_text()
  assert tool.main([*command, "--arms", "sft"]) == 0
  assert {path.parent.name for path in out.rglob("result.json")} == {
    "start",
    "seed-1",
  }
  # A run that was killed before anything of it was saved is done anew.
  killed = out / "B" / "grpo" / "seed-1"
  killed.mkdir(parents=True)
  (killed / "metrics.jsonl").write_text('{"step": 1}\n')
  capsys.readouterr()
  assert tool.main(command) == 0
  did = re.findall(r"s  (\S+)", capsys.readouterr().out)
  # The base is scored, not trained.
  assert sorted(did) == [
    "B/base/seed-1",
    "B/grpo/seed-1",
    "B/tuning/grpo-0",
    "B/tuning/grpo-1",
  ]
  whole = json.loads((out / "results.json").read_text())
  grpo = whole["regimes"]["B"]["arms"]["grpo"]
  # 12 rows of 8 tokens at most: the second step reaches the budget.
  assert grpo["cost"]["steps"] < 4
  assert grpo["cost"]["tokens"] >= 100
  right = grpo["runs"]["1"]["tests"]["test"]["right"]
  assert grpo["tests"]["test"][0] == np.mean([int(c) for c in right])
  assert (out / "B" / "comparison.html").exists()
  capsys.readouterr()
  assert tool.main(command) == 0
  assert not re.findall(r"s  (\S+)", capsys.readouterr().out)
  # Elsewhere what its JSON knows is not done again; the policy is made anew.
  elsewhere = [str(file), "--out", str(tmp_path / "elsewhere")]
  assert tool.main([*elsewhere, "--known", str(out / "results.json")]) == 0
  assert re.findall(r"s  (\S+)", capsys.readouterr().out) == ["policies/start"]
  again = json.loads((tmp_path / "elsewhere" / "results.json").read_text())
  assert again["regimes"] == whole["regimes"]
  assert tool.main([*elsewhere, "--known", str(file)]) == 2
  assert "is no results.json" in capsys.readouterr().err
  # A report of an edited study is refused as its runs are.
  file.write_text(file.read_text().replace('"steps": 2', '"steps": 3'))
  assert tool.main([*command, "--report-only"]) == 2
  assert "than the study now has (steps)" in capsys.readouterr().err


def test_runs_of_an_edited_study_are_not_taken_for_its_own(tmp_path):
  settings = tiny_run.settings(tmp_path)
  settings.model.preset, settings.model.weights = "tiny-llama", None
  settings.tokenizer.path = "somewhere"
  study = make_study(settings, ARMS)
  job = plan.Job(path="job", settings=settings, start=None)
  directory = tmp_path / "out" / "job"
  directory.mkdir(parents=True)
  plain = config.to_dict(config.parse(settings))
  (directory / "config.json").write_text(json.dumps({"config": plain}))
  (directory / "metrics.jsonl").write_text('{"step": 0}\n')
  result = {"seed": 0, "settings": work.fingerprint(job)}
  (directory / work.RESULT).write_text(json.dumps(result))
  assert work.results(tmp_path / "out", [job]) == [result]
  study.settings.adapter.rank = 3
  with pytest.raises(errors.ConfigError, match=r"now has \(adapter\.rank\)"):
    work.results(tmp_path / "out", [job])


def told(settings, directory, earlier):
  """Writes what it was given; one demonstration is left."""
  named = earlier and earlier.relative_to(directory.parents[2])
  (directory / "told.txt").write_text(f"{settings.seed} {named}")
  settings.data.demonstrations.count = 1


def test_an_arm_may_change_its_data_after_another_of_the_same_seed(tmp_path):
  arms = {
    "bridge": plan.Arm(changes={"method.name": "mixed", "steps": 1}),
    "changed": plan.Arm(
      changes={"method.name": "mixed", "steps": 1},
      search=({"steps": 1}, {"steps": 2}),
      tuned_as="bridge",
      prepare=told,
      after="bridge",
    ),
  }
  both = {
    "B": plan.Regime(about="a start", arms=arms),
    "C": plan.Regime(
      about="other data",
      arms=arms,
      changes={"data.demonstrations.task_options.max_operand": 7},
      searched_in="B",
    ),
  }
  tiny_run.weights(tmp_path)
  settings = tiny_run.settings(tmp_path)
  source = settings.data.demonstrations
  source.task, source.count = "arithmetic", 4
  source.task_options = {"steps": 1, "max_operand": 9}
  source.first = 10 * settings.get_ref("seed")
  study = make_study(settings, arms, regimes=both, tests={})
  plan.check(study)
  jobs = plan.final(study, "C", {})["changed"]
  given = [job.settings.data.demonstrations for job in jobs.values()]
  assert [source.first for source in given] == [10, 20]
  assert {source.task_options.max_operand for source in given} == {7}
  assert settings.data.demonstrations.task_options.max_operand == 9
  out = tmp_path / "out"
  work.perform(out, study, jobs[2])
  said = out / "C" / "changed" / "seed-2-data" / "told.txt"
  assert said.read_text() == "2 C/bridge/seed-2"
  assert work.done(out, jobs[2])  # what it changed is not another's
  (found,) = work.results(out, [jobs[2]])
  logged = records.read_records(out / jobs[2].path / "metrics.jsonl")
  assert found["spent"]["demonstrations"] == sum(
    line.get("sft/demonstrations", 0) for line in logged
  )
  assert found["spent"]["demonstrations"] > 0
  assert 0 < found["means"]["mix/sft_share"] < 1


def test_a_study_may_start_from_weights_that_are_there(tmp_path):
  tiny_run.weights(tmp_path / "one")
  tiny_run.weights(tmp_path / "other", seed=1)
  first = make_study(tiny_run.settings(tmp_path / "one"), ARMS)
  asked = config.Source(task="arithmetic", count=3, task_options={"steps": 1})
  first = dataclasses.replace(first, tests={"test": asked})
  assert plan.stages(first, first.regimes["B"]) == []
  base = plan.final(first, "B", {})["base"][1]
  out = tmp_path / "out"
  work.perform(out, first, base)
  (found,) = work.results(out, [base])
  assert len(found["tests"]["test"]["right"]) == 3
  # No policy was made, nor a tokenizer for it.
  assert not (out / "policies").exists()
  assert not (out / "tokenizer").exists()
  # Other weights are another study.
  job = plan.final(first, "B", {})["grpo"][1]
  (out / job.path).mkdir(parents=True)
  plain = config.to_dict(config.parse(job.settings))
  (out / job.path / "config.json").write_text(json.dumps({"config": plain}))
  (out / job.path / "metrics.jsonl").write_text('{"step": 0}\n')
  result = {"seed": 1, "settings": work.fingerprint(job)}
  (out / job.path / work.RESULT).write_text(json.dumps(result))
  assert work.done(out, job)
  other = make_study(tiny_run.settings(tmp_path / "other"), ARMS)
  with pytest.raises(errors.ConfigError, match=r"\(model\.weights\)"):
    work.done(out, plan.final(other, "B", {})["grpo"][1])


def test_the_documented_study_can_be_planned(tmp_path):
  page = pathlib.Path(__file__).parents[2] / "docs" / "how_to" / "own_study.md"
  (code,) = re.findall(r"```python[^\n]*\n(.*?)```", page.read_text(), re.S)
  file = tmp_path / "my_study.py"
  file.write_text(code)
  out = tmp_path / "out"
  command = [str(file), "--quick", "--out", str(out)]
  assert tool.main([*command, "--report-only"]) == 0
  assert "bridge (0 of 3 seeds)" in (out / "results.md").read_text()
  assert tool.main([*command, "--arms", "base"]) == 0
  whole = json.loads((out / "results.json").read_text())
  accuracy, *_ = whole["regimes"]["quickstart"]["arms"]["base"]["tests"][
    "held out"
  ]
  assert 0.05 < accuracy < 0.2  # the quickstart's start has 11%


def test_what_is_no_arm_is_refused(tmp_path, capsys):
  file = tmp_path / "study.py"
  file.write_text(STUDY.format(directory=tmp_path))
  assert tool.main([str(file), "--arms", "sft;ppo"]) == 2
  assert "'ppo'" in capsys.readouterr().err
  assert tool.main([str(tmp_path / "no.py")]) == 2


def test_jobs_run_side_by_side_and_a_failure_ends_them(tmp_path):
  study = make_study(tiny_run.settings(tmp_path), ARMS)
  broken = tiny_run.settings(tmp_path)
  broken.model.weights = str(tmp_path / "nothing")
  jobs = [
    plan.Job(path=f"job-{n}", settings=broken, start=None) for n in range(2)
  ]
  with pytest.raises(errors.ConfigError):
    work.perform_all(
      tmp_path / "out", study, jobs, side_by_side=2, report=lambda path: None
    )


def test_every_number_of_the_published_results_is_from_their_json():
  docs = pathlib.Path(__file__).parents[2] / "docs"
  whole = json.loads((docs / "results" / "arithmetic.json").read_text("utf-8"))
  page = (docs / "results" / "arithmetic.md").read_text("utf-8")
  assert document.render(whole) == page
  arm = whole["regimes"]["B"]["arms"]["bridge"]
  runs = [run["tests"]["same kind"]["right"] for run in arm["runs"].values()]
  mean = np.mean([int(right) for answers in runs for right in answers])
  assert f"| bridge | {len(runs)} | 0.0003 | {mean:.1%} (" in page


def test_every_number_of_the_summary_is_from_its_json(tmp_path):
  docs = pathlib.Path(__file__).parents[2] / "docs"
  whole = json.loads((docs / "results" / "spoiled.json").read_text("utf-8"))
  details = (docs / "results" / "spoiled.md").read_text("utf-8")
  assert document.render(whole, apart=True) == details
  page = document.summary(whole, "results/spoiled.md", "results.png")
  assert page == (docs / "results.md").read_text("utf-8")
  arms = whole["regimes"]["guess 50%"]["arms"]
  right = [
    int(bit)
    for run in arms["mixed"]["runs"].values()
    for bit in run["tests"]["same kind"]["right"]
  ]
  row = f"| one weighted loss (`mixed`) | {{}} | {np.mean(right):.1%} ("
  clean = findings.fill("[[clean / mixed / same kind]]", whole)
  assert row.format(clean) in page


@pytest.mark.parametrize(
  ("steps", "seen"),
  [
    ([{"sft/demonstrations": 3.0}, {}, {"sft/demonstrations": 2.0}], 5),
    ([{"mix/demonstrated_questions": 0.5}] * 2, 4),  # samples that go on
    ([{"sft/demonstrations": 1.0, "mix/demonstrated_questions": 1.0}], 1),
    ([{}], 0),
  ],
)
def test_a_run_s_dose_is_what_it_learned_from(tmp_path, steps, seen):
  run = finished.FinishedRun(
    path=tmp_path,
    settings={"data.prompts_per_step": 4},
    steps=dict(enumerate(steps)),
    answers={},
    completions=[],
  )
  assert work.demonstrations_seen(run) == seen
