"""How benchmarks that are not of mathematics are asked, as their authors do."""

import random

from bilevel_jax import errors, types

# EvalPlus (`evalplus.provider.utility.make_raw_chat_prompt`).
HUMANEVAL = (
  "Please provide a self-contained Python script that solves the following "
  "problem in a markdown code block:\n```python\n{question}\n```"
)
PROGRAM = (
  "{question}\nPlease give the whole Python program in a markdown code block."
)
CHOICE = (
  "{question}\nPlease reason step by step, and put the letter of the right "
  "choice within \\boxed{{}}."
)
_WRONG = tuple(f"Incorrect Answer {n}" for n in (1, 2, 3))


def with_asserts(question: types.Question) -> types.Question:
  """Returns a question of MBPP with its tests, as its authors ask it."""
  asserts = "\n".join(question.meta["test_list"])
  text = f"{question.question}\nYour code should pass these tests:\n{asserts}"
  return question._replace(question=text)


def of_contest(question: types.Question) -> types.Question:
  """Returns a question of LiveCodeBench with what its answer must look like.

  The instructions are those of `lcb_runner.prompts.code_generation`.
  """
  starter = question.meta.get("starter_code")
  how = (
    "You will use the following starter code to write the solution to the "
    f"problem:\n```python\n{starter}\n```"
    if starter
    else "Read the inputs from stdin, solve the problem and write the answer "
    "to stdout (do not directly test on the sample inputs)."
  )
  return question._replace(question=f"{question.question}\n\n{how}")


def with_choices(question: types.Question) -> types.Question:
  """Returns a question of GPQA with its four choices, in an order of its own.

  The order follows from the question's id; the answer is a letter.

  Raises:
    ConfigError: it lacks a wrong choice.
  """
  missing = [name for name in _WRONG if name not in question.meta]
  if missing:
    raise errors.ConfigError(
      f"question {question.id} must have the field {missing[0]!r}"
    )
  choices = [question.answer, *(str(question.meta[n]) for n in _WRONG)]
  order = random.Random(question.id).sample(range(4), 4)
  lines = [
    f"{letter}) {choices[place].strip()}"
    for letter, place in zip("ABCD", order, strict=True)
  ]
  text = "\n".join([question.question.strip(), "", *lines])
  return question._replace(question=text, answer="ABCD"[order.index(0)])
