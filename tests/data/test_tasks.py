"""Procedural questions, judged by Python's own arithmetic."""

import collections
import fractions
import gzip
import json
import re
import sys

import pytest

from bilevel_jax import errors, types
from bilevel_jax.data import tasks
from tests import public_data


def _value(text):
  exact = re.sub(r"\d+", r"fractions.Fraction(\g<0>)", text)
  return eval(exact, {"fractions": fractions})


OPTIONS = [
  {},
  {"steps": 1, "operators": "+", "max_operand": 40},
  {"steps": [2, 5], "operators": "+-", "min_value": -50},
  {"steps": 2, "operators": "+-*/", "max_operand": 20, "max_value": 99},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_arithmetic_solutions_are_right_step_by_step(options):
  high = options.get("max_value", 999)
  low = options.get("min_value", 0)
  for question in tasks.generate("arithmetic", count=200, options=options):
    assert _value(question.question) == int(question.answer)
    assert question.solution is not None
    *lines, last = question.solution.split(";")
    assert last == f"#{question.answer}"
    assert len(lines) == len(re.findall(r"[-+*/]", question.question))
    for line in lines:
      left, right = line.split("=")
      assert _value(left) == int(right)
      assert low <= int(right) <= high
    assert lines[-1].endswith(f"={question.answer}")


def test_arithmetic_has_the_number_of_steps_asked_for():
  questions = tasks.generate("arithmetic", count=200, options={"steps": [2, 4]})
  assert {question.meta["steps"] for question in questions} == {2, 3, 4}


def test_the_start_of_a_sequence_never_changes():
  # Golden: what this library drew when the task was written. A change here
  # changes everybody's corpora.
  (question,) = tasks.generate("arithmetic", count=1)
  assert question == types.Question(
    "arithmetic-train-0-0",
    "46+7",
    "53",
    "46+7=53;#53",
    {"steps": 1, "kind": "worked"},
  )


def _spoiled(**options):
  return tasks.generate("arithmetic", count=400, seed=3, options=options)


@pytest.mark.parametrize("operators", ["+-", "+-*", "+-*/"])
def test_a_slip_is_one_wrong_result_and_the_answer_is_right(operators):
  kinds = collections.Counter()
  for question in _spoiled(slip_share=0.75, operators=operators):
    assert question.solution is not None
    *lines, last = question.solution.split(";")
    assert last == f"#{question.answer}"
    assert _value(question.question) == int(question.answer)
    misses = [int(b) - _value(a) for a, b in (x.split("=") for x in lines)]
    assert all(0 <= int(line.split("=")[1]) <= 999 for line in lines)
    kinds[question.meta["kind"], question.meta["steps"] > 1] += 1
    assert misses[-1] == 0
    if question.meta["kind"] == "slip":
      (wrong,) = filter(None, misses)
      assert 1 <= abs(wrong) <= 9
    else:
      assert not any(misses)
  assert set(kinds) == {
    ("slip", True),
    ("worked", True),
    ("worked", False),  # no value of one step is on the way
  }
  of_several = kinds["slip", True] + kinds["worked", True]
  assert 0.68 < kinds["slip", True] / of_several < 0.82


def test_slips_and_guesses_spoil_the_same_questions():
  worked = {"steps": (2, 3)}
  guesses = _spoiled(guess_share=0.75, **worked)
  slips = _spoiled(slip_share=0.75, **worked)
  both = _spoiled(guess_share=0.25, slip_share=0.5, **worked)
  wrong = _spoiled(wrong_answer_share=0.75, **worked)
  for guess, slip, either, miss in zip(
    guesses, slips, both, wrong, strict=True
  ):
    assert guess.question == slip.question == either.question == miss.question
    assert (miss.meta["kind"] == "worked") == (guess.meta["kind"] == "worked")
    spoiled = guess.meta["kind"] == "guess"
    assert guess.solution == f"#{guess.answer}" or not spoiled
    assert slip.meta["kind"] == ("slip" if spoiled else "worked")
    assert either in (guess, slip)
  kinds = collections.Counter(question.meta["kind"] for question in both)
  assert set(kinds) == {"guess", "slip", "worked"}


@pytest.mark.parametrize("operators", ["+-", "+-*/"])
def test_a_wrong_answer_is_a_wrong_last_result(operators):
  kinds = collections.Counter()
  for question in _spoiled(wrong_answer_share=0.5, operators=operators):
    assert question.solution is not None
    *lines, last = question.solution.split(";")
    misses = [int(b) - _value(a) for a, b in (x.split("=") for x in lines)]
    assert last == f"#{lines[-1].split('=')[1]}"
    assert _value(question.question) == int(question.answer)
    assert not any(misses[:-1])
    assert abs(misses[-1]) <= 9
    kind = question.meta["kind"]
    assert (misses[-1] != 0) == (last[1:] != question.answer)
    assert (misses[-1] != 0) == (kind == "wrong_answer")
    kinds[kind] += 1
  assert 0.42 < kinds["wrong_answer"] / kinds.total() < 0.58


def test_another_operation_is_the_solution_of_a_question_that_differs_by_one():
  kinds = collections.Counter()
  options = {"other_operation_share": 0.5, "steps": (2, 3), "operators": "+-*"}
  for question in _spoiled(**options):
    assert question.solution is not None
    *lines, last = question.solution.split(";")
    assert all(_value(a) == int(b) for a, b in (x.split("=") for x in lines))
    solved = {
      changed: _value(changed)
      for at, sign in enumerate(question.question)
      if sign in "+-*"
      for changed in (
        question.question[:at] + other + question.question[at + 1 :]
        for other in "+-*"
      )
    }
    assert int(last[1:]) in solved.values()
    kind = question.meta["kind"]
    if kind == "worked":
      assert last[1:] == question.answer
    kinds[kind] += 1
  assert 0.42 < kinds["other_operation"] / kinds.total() < 0.58


@pytest.mark.parametrize("task", ["arithmetic", "countdown"])
def test_questions_are_distinct_and_the_splits_disjoint_for_any_seeds(task):
  train, test = set(), set()
  for seed in range(3):
    for split, found in (("train", train), ("test", test)):
      sampled = [
        question.question
        for question in tasks.generate(task, count=200, seed=seed, split=split)
      ]
      assert len(set(sampled)) == 200
      found.update(sampled)
  assert not train & test


@pytest.mark.parametrize("task", ["arithmetic", "countdown"])
def test_a_slice_is_a_slice_of_the_same_sequence(task):
  whole = tasks.generate(task, count=30, seed=4)
  assert tasks.generate(task, first=10, count=5, seed=4) == whole[10:15]
  other = tasks.generate(task, count=30, seed=5)
  assert other[0].question != whole[0].question
  assert len({question.id for question in whole}) == 30


def test_countdown_solutions_reach_the_target_with_the_numbers_given():
  for question in tasks.generate("countdown", count=200):
    assert question.solution is not None
    numbers, target = question.meta["nums"], question.meta["target"]
    assert _value(question.answer) == target
    used = map(int, re.findall(r"\d+", question.answer))
    assert collections.Counter(used) == collections.Counter(numbers)
    *lines, closing, last = question.solution.split("\n")
    assert closing == f"So {question.answer} = {target}."
    assert last == f"The answer is \\boxed{{{question.answer}}}."
    for line in lines:
      left, right = line.split(" = ")
      assert _value(left) == int(right) > 0


def test_countdown_reads_like_the_shared_corpus():
  path = public_data.path("train/countdown_6000.jsonl.gz")
  with gzip.open(path, "rt") as lines:
    theirs = json.loads(next(lines))
  (ours,) = tasks.generate("countdown", count=1)
  text = ours.question.replace(str(ours.meta["nums"]), "{nums}")
  text = text.replace(f"equals {ours.meta['target']}.", "equals {target}.")
  assert text.format(**theirs["meta"]) == theirs["question"]


@pytest.mark.parametrize(
  ("given", "sentence"),
  [
    (
      {"task": "algebra"},
      "task must be one of arithmetic, countdown, programs, "
      "reasoning_gym/NAME, got 'algebra'",
    ),
    (
      {"task": "arithmetic", "split": "dev"},
      "the split of a procedural task must be one of train, test, got 'dev'",
    ),
    (
      {"task": "countdown", "options": {"steps": 2}},
      "task countdown takes the options numbers, max_number, max_target, got "
      "'steps'",
    ),
    (
      {"task": "arithmetic", "options": {"steps": [3, 2]}},
      "task arithmetic: steps must be an integer from 1 to 100 or [least, "
      "most], got [3, 2]",
    ),
    (
      {"task": "arithmetic", "options": {"operators": "+^"}},
      "task arithmetic: operators must be some of +-*/, got '+^'",
    ),
    (
      {"task": "arithmetic", "options": {"max_operand": 0}},
      "task arithmetic: max_operand must be an integer from 1, got 0",
    ),
    (
      {"task": "arithmetic", "options": {"slip_share": -0.1}},
      "task arithmetic: slip_share must be a number from 0 to 1, got -0.1",
    ),
    (
      {
        "task": "arithmetic",
        "options": {"guess_share": 0.5, "slip_share": 0.6},
      },
      "task arithmetic: guess_share + slip_share must be at most 1, got "
      "0.5 + 0.6",
    ),
    (
      {
        "task": "arithmetic",
        "options": {
          "slip_share": 1,
          "steps": 2,
          "operators": "*",
          "min_value": 3,
          "max_value": 3,
        },
        "count": 1,
      },
      "task arithmetic has too few questions with these options: 1 wanted, 0 "
      "distinct ones found",
    ),
    (
      {
        "task": "arithmetic",
        "options": {"steps": 1, "max_operand": 1, "operators": "+"},
        "count": 2,
      },
      "task arithmetic has too few questions with these options: 2 wanted, 1 "
      "distinct ones found",
    ),
  ],
  ids=lambda given: str(given)[:40],
)
def test_what_cannot_be_generated_is_refused_in_a_sentence(given, sentence):
  with pytest.raises(errors.ConfigError) as error:
    tasks.generate(**given)
  assert str(error.value) == sentence


def test_reasoning_gym_questions_are_distinct_with_disjoint_splits():
  pytest.importorskip("reasoning_gym")
  name = "reasoning_gym/chain_sum"
  train = tasks.generate(name, count=30, options={"max_terms": 3})
  test = tasks.generate(name, count=10, split="test", options={"max_terms": 3})
  texts = {question.question for question in train + test}
  assert len(texts) == 40
  assert train[0].meta["entry"]["answer"] == train[0].answer
  assert train == tasks.generate(name, count=30, options={"max_terms": 3})


@pytest.mark.parametrize(
  ("name", "options", "sentence"),
  [
    (
      "chainsum",
      {},
      "reasoning_gym has no data set 'chainsum', did you mean chain_sum?",
    ),
    (
      "chain_sum",
      {"min_terms": -1},
      "task reasoning_gym/chain_sum refuses {'min_terms': -1}: min_terms must "
      "be positive",
    ),
    (
      "chain_sum",
      {"size": 20},
      "task reasoning_gym/chain_sum has too few questions with these options: "
      "30 wanted, 13 distinct ones found",
    ),
  ],
)
def test_reasoning_gym_is_refused_in_a_sentence(name, options, sentence):
  pytest.importorskip("reasoning_gym")
  with pytest.raises(errors.ConfigError) as error:
    tasks.generate(f"reasoning_gym/{name}", count=30, options=options)
  assert str(error.value) == sentence


def test_a_missing_reasoning_gym_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "reasoning_gym", None)
  with pytest.raises(errors.ConfigError, match="install the extra `tasks`"):
    tasks.generate("reasoning_gym/chain_sum")


def test_programs_are_what_their_examples_and_tests_say():
  questions = tasks.generate("programs", count=200)
  signs = set()
  for question in questions:
    program = question.solution
    f = eval(program.removeprefix("f="))
    for shown in question.question.split():
      given, out = re.fullmatch(r"f\((\d+)\)=(-?\d+)", shown).groups()
      assert f(int(given)) == int(out)
    tests = question.meta["tests"]
    assert [f(*given) for given in tests["inputs"]] == tests["outputs"]
    assert len(tests["inputs"]) == 4
    shown = {f"f({x})" for (x,) in tests["inputs"]}
    assert not [s for s in shown if s in question.question]
    signs.add(program[12])
    # No other program of the kind fits both examples.
    fitting = [
      (sign, n)
      for sign in "+-*"
      for n in range(2, 10)
      if all(
        str(eval(f"{s[2 : s.index(')')]}{sign}{n}")) == s.partition("=")[2]
        for s in question.question.split()
      )
    ]
    assert fitting == [(program[12], int(program[13:]))]
  assert signs == set("+-*")
