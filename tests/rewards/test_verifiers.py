"""Verifiers on hand-made completions, and what cannot be built."""

import concurrent.futures
import math
import re

import numpy as np
import pytest

from bilevel_jax import errors, types
from bilevel_jax.data import tasks
from bilevel_jax.rewards import extraction, mathematics, verifiers


def _question(answer, **meta):
  return types.Question("", "", answer, None, meta)


@pytest.mark.parametrize(
  ("completion", "answer"),
  [
    (r"so \boxed{5}", "5"),
    (r"\boxed{1}, or \boxed{ 2 }.", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1\}}", r"\{1\}"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{1} then \boxed{2", "1"),
    (r"\boxed{1} The final answer is $1,2$. I hope it is correct.", "1,2"),
    (r"The final answer is $x$. I hope it is correct. \boxed{1}", "1"),
    ("<answer> a\nb </answer> later", "a\nb"),
    ("<answer>1</answer><answer>2</answer>", "2"),
    ("sum\n#### 18\nbye", "18"),
    ("17+25=42;42-8=34;#34", "34"),
    ("# Heading\nThe answer is 3.5.", "3.5"),
    ("The answer is: 7. Or so.", "7"),
    ("  34 ", "34"),
    ("", ""),
  ],
)
def test_the_final_answer_is_extracted(completion, answer):
  assert extraction.extract(completion) == answer


@pytest.mark.parametrize(
  ("completion", "answer", "value"),
  [
    ("17+25=42;#42", "42", 1),
    ("17+25=42;#42", "24", 0),
    ("#a  b", "a b", 1),
    ("42 it is", "42", 0),
    ("", "42", 0),
  ],
)
def test_exact_compares_final_answers_as_text(completion, answer, value):
  assert verifiers.exact(completion, _question(answer)) == value


@pytest.mark.parametrize(
  ("completion", "answer", "value"),
  [
    ("it is 34", "34.0", 1),
    ("it is 34, not 35", "34", 0),
    ("17+25=42;42-50=-8", "-8", 1),
    ("that is 42-8", "8", 1),
    ("x = -5.", "-5", 1),
    ("1,234.50 euros", "1234.5", 1),
    ("1,234", "1234", 1),
    (".5", "1/2", 1),
    ("3/4", "0.75", 1),
    ("1e3", "1000", 1),
    ("4.5E33", "4500000000000000000000000000000000", 1),
    ("1/0", "1", 0),
    ("none", "34", 0),
    ("34", "none", 0),
    ("9" * 100_000, "9", 0),
    ("1e999999999", "9", 0),
  ],
)
def test_number_compares_the_last_number(completion, answer, value):
  assert verifiers.number(completion, _question(answer)) == value


@pytest.mark.parametrize(
  ("completion", "answer", "value"),
  [
    (r"\boxed{5}", "5", 1),
    (r"\boxed{5.0}", "5", 1),
    (r"\boxed{1,000}", "1000", 1),
    (r"\boxed{0,111}", "0.111", 1),
    (r"\boxed{6}", "5", 0),
    (r"\boxed{\dfrac{1}{2}}", "0.5", 1),
    (r"\boxed{0.333333}", r"\frac{1}{3}", 1),
    (r"\boxed{-\frac{1}{3}}", r"\frac{1}{3}", 0),
    (r"\boxed{50\%}", "50", 1),
    (r"\boxed{(x+1)^2}", "x^2+2x+1", 1),
    (r"\boxed{(x+1)^2}", "x^2+2x", 0),
    (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", 1),
    (r"\boxed{2, 1}", r"\{1,2\}", 1),
    (r"\boxed{1} and \boxed{2}", r"$\{1,2\}$", 1),
    (r"\boxed{\text{blue}}", "blue", 1),
    ("The answer is $\\frac{x}{2}$. " + "Any questions? " * 90, "x/2", 1),
    ("After 3 steps we have 5 apples", "5", 1),
    ("", "5", 0),
    (r"\boxed{}", "5", 0),
    (r"\boxed{" + "9" * 100_000 + "}", "5", 0),
    (r"\boxed{" * 10_000, "5", 0),
  ],
)
def test_math_compares_as_mathematics(completion, answer, value):
  assert mathematics.verify(completion, _question(answer)) == value


def test_math_needs_neither_the_main_thread_nor_its_alarm():
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    judged = thread.submit(
      mathematics.verify, r"\boxed{y(y+1)}", _question("y^2+y")
    )
    assert judged.result() == 1


@pytest.mark.parametrize(
  ("completion", "value"),
  [
    ("(20 + 84) - 51", 1),
    ("(20+84)-51 = 53", 1),
    (r"So it is \boxed{(20 + 84) - 51}.", 1),
    ("20+84=104\n<answer>84 - 51 + 20</answer>", 1),
    ("20 + 84 = 104\n104 - 51 = 53", 0),
    ("-51+84+20", 1),
    ("53", 0),
    ("(20+84)-51+51-51", 0),
    ("20+20+13", 0),
    ("__import__('os')", 0),
    ("20/0", 0),
    ("20/(51-51)", 0),
    ("(20+84", 0),
    ("\0", 0),
    ("(" * 100_000, 0),
    ("-" * 110 + "1", 0),
    ("-" * 100_000 + "1", 0),
    ("", 0),
  ],
)
def test_expression_must_reach_the_target_with_the_numbers(completion, value):
  question = _question("", nums=[20, 51, 84], target=53)
  assert verifiers.expression(completion, question) == value


@pytest.mark.parametrize("text", ["1+" * 15000 + "1", "(" * 9999, "-" * 9999])
def test_an_expression_that_is_too_deep_is_wrong(text):
  parts = verifiers.build({"expression": 1.0})
  question = _question("", nums=[1] * 1000, target=1)
  assert verifiers.score(parts, text, question) == (0.0, False)


@pytest.mark.parametrize("text", ["2**3", "8//1", "9%3**2", "8 if 2 else 3"])
def test_expression_knows_four_operations_only(text):
  question = _question("", nums=[1, 2, 3, 8, 9], target=8)
  assert verifiers.expression("8", question) == 1
  assert verifiers.expression(text, question) == 0


def test_expression_reads_latex_signs():
  question = _question("", nums=[6, 2, 3], target=4)
  for text in (r"\boxed{6 \times 2 \div 3}", "6 \u00d7 2 \u00f7 3"):
    assert verifiers.expression(text, question) == 1


def test_expression_accepts_every_generated_solution():
  for question in tasks.generate("countdown", count=100):
    assert verifiers.expression(str(question.solution), question) == 1
    assert verifiers.expression(question.answer, question) == 1


def test_exact_accepts_every_generated_solution():
  for question in tasks.generate("arithmetic", count=100):
    for verify in (verifiers.exact, verifiers.number, mathematics.verify):
      assert verify(str(question.solution), question) == 1


def test_reasoning_gym_scores_with_its_own_scorer():
  pytest.importorskip("reasoning_gym")
  (part,) = verifiers.build({"reasoning_gym": 1.0})
  for question in tasks.generate("reasoning_gym/chain_sum", count=5):
    assert part.verify(rf"\boxed{{{question.answer}}}", question) == 1
    assert part.verify("no idea", question) < 1


def test_a_reward_is_a_weighted_sum_and_its_first_part_says_correct():
  parts = verifiers.build({"exact": 1.0, "regex": 0.25}, "^so")
  score = lambda text: verifiers.score(parts, text, _question("5"))
  assert score("so #5") == (1.25, True)
  assert score("#5") == (1.0, True)
  assert score("so #6") == (0.25, False)
  assert score("#6") == (0.0, False)


@pytest.fixture
def module(tmp_path, monkeypatch):
  """A user's module of verifiers, called `own`."""
  path = tmp_path / "own.py"
  path.write_text(
    "constant = 1\n"
    "def length(completion, question): return len(completion)\n"
    "def fails(completion, question): raise KeyError('x')\n"
    "def nothing(completion, question): return None\n"
    "def infinite(completion, question): return float('inf')\n"
  )
  (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
  monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("path", ["own.length", "own:length"])
def test_a_dotted_path_names_a_function(path):
  parts = verifiers.build({path: 2.0})
  assert verifiers.score(parts, "abc", _question("")) == (6.0, True)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("name", ["fails", "nothing", "infinite"])
def test_a_verifier_that_fails_makes_the_completion_unscorable(name):
  parts = verifiers.build({"exact": 1.0, f"own.{name}": 1.0})
  reason = verifiers.score(parts, "#5", _question("5"))
  assert isinstance(reason, str)
  assert reason.startswith(f"own.{name} ")


async def _asynchronous():
  return 1.0


@pytest.mark.parametrize(
  ("value", "reason"),
  [
    ([1.0], r"must return a finite number below 1e30 in size, got \[1.0\]"),
    ("0.5", "must return a finite number below 1e30 in size, got '0.5'"),
    (None, "must return a finite number below 1e30 in size, got None"),
    (np.zeros(2), r"must return a finite number below 1e30 in size, got array"),
    ({}, r"must return a finite number below 1e30 in size, got \{\}"),
    (math.nan, "must return a finite number below 1e30 in size, got nan"),
    (10**400, "must return a finite number below 1e30 in size, got 1000"),
    (1e39, r"must return a finite number below 1e30 in size, got 1e\+39"),
    (-math.inf, "must return a finite number below 1e30 in size, got -inf"),
    (_asynchronous, "must be a plain function, got an async one"),
  ],
)
def test_what_is_no_score_is_said(value, reason):
  def verify(completion, question):
    return value() if callable(value) else value

  part = verifiers.Part("mine", 1.0, verify)
  assert re.match(f"mine {reason}", verifiers.score([part], "", _question("")))


@pytest.mark.parametrize("weight", [math.inf, math.nan, 1e39, "1", None, True])
def test_a_weight_is_a_number_that_a_sum_can_hold(weight):
  with pytest.raises(errors.ConfigError, match=r"^reward.weights must be num"):
    verifiers.build({"exact": 1.0, "number": weight})


def test_a_weight_that_makes_a_reward_too_large_is_said():
  part = verifiers.Part("mine", 1e20, lambda completion, question: 1e15)
  assert verifiers.score([part], "", _question("")) == (
    "mine must return a finite number below 1e30 in size, got "
    "1000000000000000.0 of weight 1e+20"
  )


@pytest.mark.parametrize("value", [True, np.float32(1), np.int64(1), 1])
def test_numbers_of_every_kind_are_scores(value):
  part = verifiers.Part("mine", 0.5, lambda completion, question: value)
  assert verifiers.score([part], "", _question("")) == (0.5, True)


def test_a_traceback_begins_in_the_verifier():
  def verify(completion, question):
    return question.meta["gold"]

  part = verifiers.Part("mine", 1.0, verify)
  reason = verifiers.score([part], "", _question(""))
  assert reason.startswith("mine raised\nTraceback")
  assert reason.endswith("KeyError: 'gold'")
  assert reason.count("  File ") == 1


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
  ("parts", "pattern", "sentence"),
  [
    ({}, None, "reward.verifiers must name at least one verifier"),
    (
      {"maths": 1.0},
      None,
      "reward.verifiers takes math, exact, number, expression, choice, "
      "reasoning_gym, regex, code, or a dotted path to a function, got 'maths'",
    ),
    (
      {"nowhere.f": 1.0},
      None,
      "reward.verifiers: 'nowhere.f' cannot be imported: ModuleNotFoundError: "
      "No module named 'nowhere'",
    ),
    (
      {"broken.f": 1.0},
      None,
      "reward.verifiers: 'broken.f' cannot be imported: broken.py, line 1: "
      "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    ),
    ({"own.f": 1.0}, None, "reward.verifiers: 'own.f': module own has no f"),
    (
      {"own.constant": 1.0},
      None,
      "reward.verifiers: 'own.constant': module own cannot call constant",
    ),
    (
      {"__main__.f": 1.0},
      None,
      "reward.verifiers: '__main__.f' must be in a module that another "
      "process can import, got __main__",
    ),
    (
      {"regex": 1.0},
      None,
      "reward.pattern must be set when reward.verifiers has regex, got None",
    ),
    (
      {"regex": 1.0},
      "(",
      "reward.pattern must be a regular expression, got '(': missing ), "
      "unterminated subpattern at position 0",
    ),
  ],
  ids=str,
)
def test_what_cannot_be_built_is_refused_in_a_sentence(
  tmp_path, parts, pattern, sentence
):
  with pytest.raises(errors.ConfigError) as error:
    verifiers.build(parts, pattern)
  assert str(error.value).replace(f"{tmp_path}/", "") == sentence


@pytest.mark.parametrize(
  ("completion", "is_right"),
  [
    (r"\boxed{B}", True),
    (r"\boxed{(B)}", True),
    (r"\boxed{\text{B}}", True),
    (r"\boxed{B) the second}", True),
    (r"\boxed{\textbf{(B) } 7}", True),
    ("The answer is B.", True),
    ("The answer is **B**", True),
    (r"\boxed{A}", False),
    (r"\boxed{b}", False),
    (r"\boxed{AB}", False),
    (r"\boxed{Bx}", False),
    ("B is what they say, but no", False),
    ("", False),
  ],
)
def test_the_letter_of_a_choice(completion, is_right):
  assert verifiers.choice_letter(completion, _question("B")) == is_right
