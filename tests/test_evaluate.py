"""Scores of weights on benchmarks: the engine's answers, graded and counted."""

import json
import shutil

import jax
import numpy as np
import pytest

from bilevel_jax import evaluate, types
from bilevel_jax.data import tokenizer
from bilevel_jax.evaluation import (
  benchmark_table,
  benchmarks,
  paired,
  scoring,
  summary,
)
from bilevel_jax.reporting import scores as scores_lib
from bilevel_jax.rewards import verifiers
from bilevel_jax.rollout import answers, engine
from bilevel_jax.training import meshes
from bilevel_jax.weights import huggingface
from tests import processes, tiny_run

BUDGET = 8


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """Weights, and two benchmarks of five and three questions beside them."""
  path = tmp_path_factory.mktemp("evaluate")
  tiny_run.weights(path)
  for name, count in (("gsm8k_test", 5), ("math500", 3)):
    rows = [
      {"id": f"{name}-{n}", "question": f"{n}+{n}", "answer": str(n)}
      for n in range(count)
    ]
    (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return path


@pytest.fixture
def run(directory, tmp_path, capsys):
  def run(*arguments, benchmarks="gsm8k,math500"):
    code = evaluate.main(
      [
        *("--weights", str(directory / "policy"), "--data", str(directory)),
        *("--out", str(tmp_path / "out"), "--benchmarks", benchmarks),
        *("--max-new-tokens", str(BUDGET), "--template", "{question}="),
        *("--verifier", "number", "--rows", "4", *arguments),
      ]
    )
    return code, *capsys.readouterr()

  run.out = tmp_path / "out"
  return run


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_greedy_scores_are_those_of_the_engines_texts(directory, run):
  code, out, _ = run()
  assert code == 0
  architecture = huggingface.read_architecture(directory / "policy")
  policy = tiny_run.make_policy(architecture)
  loaded = tokenizer.from_source(directory / "policy", prompt="{question}=")
  questions = [
    types.Question("", f"{n}+{n}", str(n), None, {}) for n in range(5)
  ]
  rollout = engine.generate(
    policy,
    policy.merge(
      huggingface.load_base(directory / "policy", architecture), None
    ),
    types.Requests(
      prompts=[loaded.prompt_tokens(question) for question in questions],
      prompt_ids=np.arange(5),
      samples_per_prompt=1,
      max_new_tokens=BUDGET,
      eos_ids=loaded.eos_ids,
      sampling=types.Sampling(temperature=0.0),
      key=jax.random.key(0),
    ),
  )
  texts = [
    loaded.decode(tokens[:length])
    for tokens, length in zip(rollout.tokens, rollout.lengths, strict=True)
  ]
  records = _lines(run.out / "records" / "gsm8k.jsonl")
  assert [r["completions"] for r in records] == [[text] for text in texts]
  right = [
    verifiers.number(text, question) == 1
    for text, question in zip(texts, questions, strict=True)
  ]
  assert [r["correct"] for r in records] == [[r] for r in right]
  scores = json.loads((run.out / "scores.json").read_text())
  found = scores["benchmarks"]["gsm8k"]
  assert found["scores"]["pass@1"][0] == np.mean(right)
  assert found["tokens"][0] == rollout.lengths.mean()
  assert found["truncated_share"] == rollout.share_ended_by("length")
  assert found["first_prompt"] == "0+0=\n"
  assert scores["settings"]["prompt"] == "{question}="
  assert scores["settings"]["max_new_tokens"] == BUDGET
  assert "mean_of_five" not in scores
  assert "pass@1" in out


@pytest.mark.parametrize(("bytes_each", "split"), [(None, 1), (30_000, 2)])
def test_several_devices_answer_as_one_does(
  bytes_each, split, run, tmp_path, monkeypatch
):
  """Copies of the weights, or parts where a device has no room for a copy."""
  tiny_run.weights(tmp_path, kv_heads=2)
  devices, answer, asked = jax.local_devices(), answers.answer, []
  assert len(devices) == 4

  def watched(*arguments, **named):
    asked.append((arguments, named))
    return answer(*arguments, **named)

  monkeypatch.setattr(answers, "answer", watched)

  def records(out):
    code, *_ = run(
      *("--weights", str(tmp_path / "policy"), "--out", str(tmp_path / out)),
      *("--samples", "3", "--temperature", "1"),
    )
    assert code == 0
    return _lines(tmp_path / out / "records" / "gsm8k.jsonl")

  monkeypatch.setattr(meshes, "_reported_bytes", lambda _: bytes_each)
  several = records("several")
  (_, weights, *_), named = asked[0]
  kernel = weights["layers"][0]["q"]["kernel"]
  width, heads = kernel.shape
  assert kernel.sharding.shard_shape(kernel.shape) == (width, heads // split)
  assert named["sharding"].num_devices == 4
  assert named["max_rows"] == 4 * 4 // split
  monkeypatch.setattr(meshes, "_reported_bytes", lambda _: None)
  monkeypatch.setattr(jax, "local_devices", lambda: devices[:1])
  assert several == records("one")
  assert asked[-1][1]["sharding"].num_devices == 1


def test_a_call_goes_on_where_the_last_one_stopped(run):
  arguments = ("--samples", "2", "--temperature", "1")
  run(*arguments)
  path = run.out / "records" / "gsm8k.jsonl"
  whole, scores = path.read_text(), (run.out / "scores.json").read_text()
  lines = whole.splitlines(keepends=True)
  marked = lines[0].replace('"finish_reason"', '"kept": 1, "finish_reason"')
  for end in (30, -1):  # a line that was cut; one that lacks its end alone
    path.write_text(marked + lines[1][:end])
    code, *_ = run(*arguments)
    assert code == 0
    assert path.read_text() == marked + "".join(lines[1:])
    assert (run.out / "scores.json").read_text() == scores


def test_other_settings_need_another_directory(run):
  run(benchmarks="math500")
  code, _, err = run("--seed", "1")
  assert code == 2
  assert "has results for another seed: 0, not 1" in err
  code, _, err = run("--limit", "2")
  assert code == 2
  assert "asked other questions of math500: 3 from" in err
  assert run()[0] == 0  # another benchmark may come


def test_results_of_an_evaluation_are_not_written_over_when_broken(run):
  run(benchmarks="math500")
  path = run.out / "records" / "math500.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  for line in ("[1]\n", "{\n"):
    path.write_text(lines[0] + line + lines[2])
    code, _, err = run(benchmarks="math500")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{path} line 2 " in err
    assert path.read_text() == lines[0] + line + lines[2]
  broken = "settings.json must hold an evaluation's settings"
  for text, said in {
    "[1]": "settings.json must be a JSON object, got a list",
    '{"a': "settings.json is not JSON",
    "{}": broken,
    '{"benchmarks": {"gsm8k": 1}}': broken,
  }.items():
    (run.out / "settings.json").write_text(text)
    for arguments in ([], ["--out", "new", "--against", str(run.out)]):
      code, _, err = run(*arguments)
      assert (code, err.count("\n")) == (2, 1)
      assert said in err


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(run):
  run()
  whole = (run.out / "scores.json").read_text()
  shutil.rmtree(run.out)
  with processes.files_of_at_most(1200):
    code, _, err = run()
  assert code == 2
  (error,) = [x for x in err.splitlines() if x.startswith("error: ")]
  assert error.endswith("File too large; the same command goes on from here")
  assert run()[0] == 0
  assert (run.out / "scores.json").read_text() == whole


def test_weights_that_were_trained_on_need_another_directory(
  directory, run, tmp_path
):
  weights = shutil.copytree(directory / "policy", tmp_path / "policy")
  run("--weights", str(weights), benchmarks="math500")
  path = weights / "model.safetensors"
  data = path.read_bytes()
  path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
  code, _, err = run("--weights", str(weights), benchmarks="math500")
  assert code == 2
  assert "has results for another weights_hash" in err
  path.write_bytes(data)
  assert run("--weights", str(weights), benchmarks="math500")[0] == 0


def test_questions_in_training_data_are_named(run, tmp_path):
  path = tmp_path / "training.jsonl"
  path.write_text(
    json.dumps({"id": "t", "question": "so 3 + 3 is?", "answer": "6"})
  )
  code, _, err = run("--check-overlap", str(path), "--limit", "4")
  assert code == 0
  assert "gsm8k: 1 of 4 questions are in" in err
  scores = json.loads((run.out / "scores.json").read_text())
  assert scores["overlap"] == {
    "gsm8k": [
      {"question_id": "gsm8k_test-3", "training_id": "t", "share": 1.0}
    ],
    "math500": [],
  }


def _grade(out, name, right):
  """Changes what a benchmark's records say is right."""
  path = out / "records" / f"{name}.jsonl"
  lines = [
    json.dumps(line | {"correct": [bool(correct)]}) + "\n"
    for line, correct in zip(_lines(path), right, strict=True)
  ]
  path.write_text("".join(lines))


def test_weights_are_compared_question_by_question(run, tmp_path, monkeypatch):
  monkeypatch.setattr(benchmark_table, "FIVE", ("math500", "gsm8k"))
  run()
  earlier = shutil.copytree(run.out, tmp_path / "earlier")
  before, now = {}, {}
  before["gsm8k"], now["gsm8k"] = [1, 0, 0, 0, 1], [1, 1, 1, 0, 0]
  before["math500"], now["math500"] = [0, 0, 1], [1, 1, 1]
  for name in before:
    _grade(earlier, name, before[name])
    _grade(run.out, name, now[name])
  code, out, _ = run("--against", str(earlier), "--seed", "0")
  assert code == 0
  scores = json.loads((run.out / "scores.json").read_text())
  found = scores["against"][str(earlier)]
  for name in before:
    pair = np.array(before[name]), np.array(now[name])
    value, low, high, p = paired.by_question(*pair)
    assert found["benchmarks"][name] == {
      "before": np.mean(before[name]),
      "now": np.mean(now[name]),
      "difference": [value, low, high],
      "p": p,
    }
  five = found["mean_of_five"]
  assert five["difference"][0] == pytest.approx((1 / 5 + 2 / 3) / 2)
  assert five["now"] - five["before"] == pytest.approx(five["difference"][0])
  assert f"against {earlier}" in out
  assert "+66.7%" in out


def test_only_the_weights_of_what_is_compared_may_differ(run, tmp_path):
  run()
  refused = lambda *arguments: run(
    *("--out", str(tmp_path / "new"), "--against", str(run.out), *arguments)
  )
  for arguments, sentence in (
    (["--max-new-tokens", "4"], "has max_new_tokens 8, not 4: only the weig"),
    (["--template", "{question}?"], "has prompt '{question}=', not '{quest"),
    (["--limit", "2"], "asked other questions of gsm8k: 5 from"),
    (["--against", "nowhere"], "--against takes the --out of an earlier"),
  ):
    code, out, err = refused(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sentence in err
  path = run.out / "records" / "gsm8k.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(reversed(lines)))
  assert "holds answers to other questions" in refused()[2]
  path.write_text(lines[0] + '{"c')
  assert "answers to 1 of 5 questions of gsm8k" in refused()[2]
  settings = json.loads((run.out / "settings.json").read_text())
  del settings["benchmarks"]["gsm8k"]
  (run.out / "settings.json").write_text(json.dumps(settings))
  assert "has no answers to gsm8k, only to math500" in refused()[2]
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (["--benchmarks", "maths"], "--benchmarks takes math500, minerva_math,"),
    (["--benchmarks", "aime24"], "--data must have aime24.jsonl or aime24.js"),
    (["--samples", "0"], "--samples must be at least 1, got 0"),
    (["--samples", "4"], "--samples 4 at --temperature 0 would all be the"),
    (["--dtype", "int8"], "--dtype takes float32 or bfloat16, got 'int8'"),
    (["--top-p", "0"], "--top-p must be above 0, at most 1"),
    (["--max-new-tokens", "999"], "but the model has 128 positions"),
    (["--verifier", "maths"], "--verifier takes math, exact, number"),
    (["--verifier", "regex"], "--verifier takes no regex, whose pattern is"),
    (["--template", "Solve!"], "--template must have a field such as {ques"),
    (["--stop", ""], "--stop must not be empty, got ''"),
    (["--seed", "-1"], "--seed must be at least 0, below 2^32, got -1"),
    (["--seed", str(2**32)], "below 2^32, got 4294967296"),
    (["--out", "/dev/null/results"], "--out /dev/null/results cannot be wri"),
    (["--weights", "no/such/place/at/all"], "no/such/place"),
    (["--check-overlap", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
  ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence, run):
  code, out, err = run(*arguments)
  assert (code, out) == (2, "")
  assert err.startswith("error: ")
  assert sentence in err
  assert err.count("\n") == 1
  assert not run.out.exists()


def _answered(texts):
  """Two questions with two samples each; the last has no score."""
  requests = types.Requests(
    prompts=[np.zeros(1, np.int32)] * 2,
    prompt_ids=np.arange(2),
    samples_per_prompt=2,
    max_new_tokens=BUDGET,
    eos_ids=(0,),
    sampling=types.Sampling(),
    key=jax.random.key(0),
  )
  rollout = types.Rollout(
    requests=requests,
    tokens=np.zeros((4, BUDGET), np.int32),
    lengths=np.array([1, 2, 3, 8]),
    logprobs=np.zeros((4, BUDGET), np.float32),
    finish_reasons=np.array(
      [
        types.FINISH_REASONS.index(r)
        for r in ("stop", "stop", "stop", "length")
      ]
    ),
  )
  questions = [types.Question(name, name, "1/2", None, {}) for name in "ab"]
  return answers.Answers(
    questions=[questions[i] for i in rollout.prompt_index],
    completions=texts,
    rollout=rollout,
    scores=types.Scores(
      rewards=np.zeros(4, np.float32),
      scored=np.array([True, True, True, False]),
      correct=np.array([True, False, True, True]),
    ),
    rollout_s=0.0,
    reward_s=0.0,
  )


def test_a_record_is_of_its_question_with_final_answers_in_one_form():
  answered = _answered([r"\boxed{ \dfrac{1}{2} }", "#1", "#2", "#3"])
  first, second = (summary.record(answered, n) for n in (0, 1))
  assert (first["id"], second["id"]) == ("a", "b")
  assert first["correct"] == [True, False]
  assert second["correct"] == [True, False]  # what has no score is wrong
  assert first["final"] == [r"\frac{1}{2}", "1"]
  assert second["tokens"] == [3, 8]
  assert second["finish_reason"] == ["stop", "length"]


def test_held_out_answers_are_counted(monkeypatch):
  answered = _answered(["1"] * 4)
  monkeypatch.setattr(answers, "answer", lambda *_, **__: answered)

  class Prompts:
    def __len__(self):
      return 4

    def take(self, first, count):
      return answered.questions, [np.zeros(1)] * count, np.arange(count)

  result, _ = benchmarks.evaluate(
    *(None, None, Prompts(), None, None),
    eos_ids=(0,),
    max_new_tokens=BUDGET,
    temperature=0.0,
    max_rows=4,
    key=jax.random.key(0),
  )
  assert (result.correct, result.questions, result.unscorable) == (2, 4, 1)
  assert (result.length, result.truncated_share) == (3.5, 0.25)
  assert result.interval == scoring.wilson_interval(2, 4)
  assert benchmarks.Result.from_metrics(result.metrics()) == result


def _record(correct, final):
  return {
    "correct": correct,
    "scored": [True] * len(correct),
    "final": final,
    "tokens": list(range(1, len(correct) + 1)),
    "finish_reason": ["stop", "length"] * (len(correct) // 2),
  }


def test_the_first_completion_that_cannot_be_scored_is_shown(run):
  code, _, err = run(
    *("--verifier", "tests.tiny_run.broken"), benchmarks="gsm8k"
  )
  assert code == 0
  assert (
    err.count("a completion could not be scored, and counts as wrong:") == 1
  )
  assert err.count("KeyError: 'gold'") == 1
  found = json.loads((run.out / "scores.json").read_text())
  assert found["benchmarks"]["gsm8k"]["unscorable_share"] == 1.0


def test_several_samples_are_counted_by_question():
  records = [
    _record([True, True, False, False], ["1/2", "0.5", "3", "4"]),
    _record([False] * 4, ["1", "2", "2", "3"]),
    _record([True, False, False, False], ["1", "2", "2", "3"]),
    _record([True] * 4, ["7"] * 4),
  ]
  found = summary.summarise(records)
  values = {name: estimate[0] for name, estimate in found["scores"].items()}
  assert values == pytest.approx(
    {
      "avg@4": 7 / 16,
      "pass@2": (5 / 6 + 0 + 1 / 2 + 1) / 4,
      "pass@4": 3 / 4,
      "maj@4": 2 / 4,  # 1/2 and 0.5 are one answer
    }
  )
  for value, low, high in found["scores"].values():
    assert low <= value <= high
  assert found["tokens"][0] == 2.5
  assert found["truncated_share"] == 0.5
  assert found["unscorable_share"] == 0


def test_the_mean_of_five_needs_all_five():
  results = {
    name: {"scores": {"avg@2": [value, 0, 1], "pass@2": [1, 1, 1]}}
    for name, value in zip("abcde", (0.5, 0.1, 0.2, 0, 0), strict=True)
  }
  value, low, high = summary.mean_of("abcde", results)
  assert value == pytest.approx(0.16)
  assert low < value < high
  assert summary.mean_of("abcdef", results) is None


def test_a_narrow_screen_shows_every_score(monkeypatch, capsys):
  monkeypatch.setenv("COLUMNS", "80")
  monkeypatch.setenv("NO_COLOR", "1")
  monkeypatch.setenv("TERM", "dumb")
  monkeypatch.setattr("rich.console.Console.is_terminal", True)
  records = [_record([True, False] * 4, ["1", "2"] * 4)] * 3
  found = summary.summarise(records)
  found["scores"]["avg@8"] = [0.5, 0.25, 0.75]
  scores_lib.print_scores({"olympiadbench": found}, None, {})
  words = capsys.readouterr().out.split()
  assert "50.0% 25.0% to 75.0%" in " ".join(words)
  assert {"olympiadbench", "avg@8", "pass@8", "maj@8", "50.0%"} <= set(words)
  assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(words)


def test_programs_are_asked_and_scored_their_own_way(run, tmp_path):
  rows = {
    "humaneval": {
      "question": "def f(x):\n",
      "entry_point": "f",
      "test": "def check(candidate):\n  assert candidate(1) == 1",
    },
    "gsm8k_test": {"question": "1+1", "answer": "2"},
  }
  for name, row in rows.items():
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": "7"} | row))
  code, out, err = run(
    *("--data", str(tmp_path), "--samples", "4", "--temperature", "1"),
    benchmarks="humaneval,gsm8k",
  )
  assert code == 0, err
  assert "pass@4" in out
  scores = json.loads((run.out / "scores.json").read_text())
  assert scores["isolation"].split(",")[0] in ("namespaces", "landlock")
  programs, numbers = scores["benchmarks"].values()
  assert list(programs["scores"]) == ["avg@4", "pass@2", "pass@4"]
  assert list(numbers["scores"]) == ["avg@4", "pass@2", "pass@4", "maj@4"]
  assert programs["unscorable_share"] == numbers["unscorable_share"] == 0
  # --template stands in for the prompts that benchmarks have of their own.
  assert programs["first_prompt"].startswith("def f(x):\n=")
