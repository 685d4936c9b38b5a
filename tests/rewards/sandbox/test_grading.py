"""Which programs pass: the forms of tests, and what counts as right."""

import base64
import json
import pickle
import zlib

import pytest

from bilevel_jax import errors, types
from bilevel_jax.rewards import verifiers
from bilevel_jax.rewards.sandbox import blocks, forms, grading, settings


@pytest.fixture(scope="module")
def code():
  """A verifier with time for a machine that is busy."""
  found = grading.Code(settings.Sandbox(deadline_s=60.0, test_s=60.0))
  yield found
  found.close()


@pytest.fixture(scope="module")
def share():
  """The same, whose score is the share of tests passed."""
  found = grading.Code(
    settings.Sandbox(deadline_s=60.0, test_s=60.0, score="share")
  )
  yield found
  found.close()


def _question(answer="", **meta):
  return types.Question("1", "", answer, None, meta)


def _block(program):
  return f"So:\n```python\n{program}\n```\nThat is it."


STREAMS = _question(
  tests={"inputs": ["1 2\n", "3 4\n", "5 6\n"], "outputs": ["3\n", "7", "11"]}
)
CALLS = _question(
  tests={"inputs": [[1, 2], [3, 4]], "outputs": [3, 7], "fn_name": "add"}
)
ASSERTS = _question(
  test_list=["assert add(1, 2) == 3", "assert add([1], [2]) == [1, 2]"]
)
HUMANEVAL = _question(
  prompt="from typing import List\n\n\ndef two():\n  return 2\n\n\n"
  'def double(x: List[int]) -> List[int]:\n  """Doubles."""\n',
  entry_point="double",
  test="def check(candidate):\n  assert candidate([1]) == [2]\n"
  "  assert candidate([two()]) == [4]\n",
)


@pytest.mark.parametrize(
  ("question", "right", "wrong"),
  [
    (STREAMS, "print(sum(map(int, input().split())))", "print(3)"),
    (CALLS, "def add(a, b): return a + b", "def add(a, b): return 3"),
    (
      CALLS,
      "class Solution:\n  def add(self, a, b): return a + b",
      "class Solution:\n  def add(self, a, b): return b",
    ),
    (ASSERTS, "def add(a, b): return a + b", "def add(a, b): return b + a"),
    (
      HUMANEVAL,
      "def double(x): return [2 * n for n in x]",
      "def double(x): return x",
    ),
    (
      _question(test_list=["assert sum(10, 15) == 6"]),
      "def sum(a, b): return 6",
      "",
    ),
    (
      _question(
        test_setup_code="root = Node(1)\nroot.left = Node(2)",
        test_list=[
          "assert depth(root) == 2",
          "assert len(list(all_(root)))==2",
        ],
      ),
      "class Node:\n  left = None\n  def __init__(self, v): self.v = v\n"
      "def depth(n): return 0 if n is None else 1 + depth(n.left)\n"
      "def all_(n):\n  while n: yield n; n = n.left",
      "def depth(n): return 2",
    ),
    (
      _question(test_list=["try: f(1)\nexcept ValueError: pass\nelse: raise"]),
      "def f(x): raise ValueError",
      "def f(x): raise TypeError",
    ),
    (
      _question(test_list=["try: f(1)\nexcept Exception: pass\nelse: raise"]),
      "def f(x): raise TypeError",
      "import os\ndef f(x): os._exit(0)",
    ),
    (
      _question(
        test_list=["assert f() == [{1: (2, 3j)}, {4}, b'a', 10**5000]"]
      ),
      "def f(): return [{1: (2, 3j)}, {4}, b'a', 10**5000]",
      "def f(): return [{1: [2, 3j]}, {4}, b'a', 10**5000]",
    ),
  ],
)
def test_right_programs_pass_and_wrong_ones_fail(code, question, right, wrong):
  assert code(_block(right), question) == 1.0
  assert code(_block(wrong), question) == 0.0


def test_a_completion_goes_on_from_humanevals_prompt(code):
  assert code("  return [2 * n for n in x]\n", HUMANEVAL) == 1.0
  assert code("  return [3 * n for n in x]\n", HUMANEVAL) == 0.0


@pytest.mark.parametrize(
  ("question", "program", "passed"),
  [
    (STREAMS, "a, b = input().split()\nprint(3 if a == '1' else 7)", 2 / 3),
    (STREAMS, "print(3)\nif input() == '3 4': raise ValueError", 1 / 3),
    (CALLS, "def add(a, b): return 7", 1 / 2),
    (ASSERTS, "def add(a, b): return 3", 1 / 2),
    (ASSERTS, "def add(a, b): return int(a + b)", 1 / 2),
  ],
)
def test_the_share_of_tests_passed(code, share, question, program, passed):
  assert share(_block(program), question) == passed
  assert code(_block(program), question) == 0.0


def test_livecodebenchs_tests_are_read_as_it_packs_them():
  hidden = [{"input": "[1]\n2", "output": "[1, 2]", "testtype": "functional"}]
  packed = base64.b64encode(
    zlib.compress(pickle.dumps(json.dumps(hidden)))
  ).decode()
  question = _question(
    public_test_cases=json.dumps([{"input": "[]\n0", "output": "[0]"}]),
    private_test_cases=packed,
    metadata=json.dumps({"func_name": "append"}),
  )
  assert forms.tests_of(question) == forms.Calls(
    "append", [([[], 0], [[0]]), ([[1], 2], [[1, 2]])]
  )
  hostile = base64.b64encode(zlib.compress(pickle.dumps(print))).decode()
  with pytest.raises(ValueError, match=r"builtins\.print"):
    forms.tests_of(_question(private_test_cases=hostile))


def test_other_forms_are_read():
  streams = forms.Streams([("1\n2", "3")])
  for tests in (
    {"inputs": [["1", "2"]], "outputs": [["3"]]},
    json.dumps({"inputs": ["1\n2"], "outputs": ["3"]}),
    [{"input": "1\n2", "output": "3"}],
  ):
    assert forms.tests_of(_question(tests=tests)) == streams
    assert forms.tests_of(_question(input_output=tests)) == streams
  text = json.dumps({"inputs": ["1\n2"], "outputs": ["3"]})
  assert forms.tests_of(_question(answer=text)) == streams
  apps = {"fn_name": "f", "inputs": [[1]], "outputs": [[2]]}
  assert forms.tests_of(_question(tests=apps)).cases == [([1], [[2], 2])]


@pytest.mark.parametrize("tests", [None, [], {}, 3, {"inputs": []}, [1]])
def test_a_question_without_tests_is_refused(tests):
  with pytest.raises(ValueError, match="question 1 has no tests"):
    forms.tests_of(_question(tests=tests))
  with pytest.raises(errors.ConfigError, match="verifier code needs tests"):
    verifiers.check(["code"], None, [_question(tests=tests)])


@pytest.mark.parametrize(
  ("output", "expected", "is_right"),
  [
    ("3\n", "3", True),
    (" 3 \n4\n\n", "3\n4\n", True),
    ("3\n\n4", "3\n4", False),
    ("3.0", "3", True),
    ("1e0 2", "1.0 2.00", True),
    ("3.0000001", "3", False),
    ("yes", "YES", False),
    ("3 4", "3\n4", False),
    ("", "", True),
    ("a 1", "a 1.0", False),  # LiveCodeBench has numbers or text, not both
  ],
)
def test_outputs_are_compared_as_livecodebench_does(output, expected, is_right):
  assert grading.same_output(output.encode(), expected) is is_right


@pytest.mark.parametrize(
  ("completion", "program"),
  [
    ("a\n```python\nx\ny\n```\nb", "x\ny"),
    ("```py\nfirst\n```\nor\n```\nlast\n```", "last"),
    ("  return 1\n", "  return 1\n"),
    ("```python\nx", ""),
    ("<think>```python\nx\n```</think>```python\ny\n```", "y"),
    ("<think>```python\nx\n```</think>", ""),
    ("```python\nx\n```\n```python\ny", "```"),  # theirs, too
  ],
)
def test_the_program_of_a_completion(completion, program):
  found = blocks.program(completion)
  assert found == program if program != "```" else "y" not in found


def test_a_field_chooses_the_verifier_of_each_question():
  parts = verifiers.build({"exact": 1.0, "number": 2.0})
  by = verifiers.Choice("kind", {"sums": "number"})
  score = lambda text, kind: verifiers.score(
    parts, text, _question("5", kind=kind), by
  )
  assert score("5", "exact") == (1.0, True)
  assert score("is 5", "exact") == (0.0, False)
  assert score("is 5", "number") == score("is 5", "sums") == (2.0, True)
  verifiers.check(["number"], by, [_question("5", kind="sums")])
  for meta, words in (({}, "lacks"), ({"kind": "other"}, "must name one of")):
    with pytest.raises(errors.ConfigError, match=f"^reward.*{words}"):
      verifiers.check(["number"], by, [_question(**meta)])
