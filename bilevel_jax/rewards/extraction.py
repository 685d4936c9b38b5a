"""The final answer of a completion, and the number in it."""

import fractions
import re


def extract(completion: str) -> str:
  r"""Returns the final answer of a completion, stripped.

  The first of these that is there: `The final answer is $...$. I hope it is
  correct.` after any box, the last complete `\boxed{...}`, the last
  `<answer>...</answer>`, what follows the last `####` on its line, what
  follows the last `#` of the last line, what follows the last `answer is` up
  to the end of the sentence, everything. Its time is linear in the length.
  """
  box = last_box(completion)
  for closing in _CLOSING.finditer(completion, box[1] if box else 0):
    return closing[1].strip(" $")
  if box:
    return completion[slice(*box)].strip()
  for mark in (_ANSWER_TAG, _FOUR_HASHES):
    if found := mark.findall(completion):
      return found[-1].strip()
  last_line = completion.rstrip().rpartition("\n")[2]
  if "#" in last_line:
    return last_line.rpartition("#")[2].strip()
  found = ANSWER_IS.findall(completion)
  return (found[-1] if found else completion).strip()


# As in the prompt of Lewkowycz et al. 2022, appendix D.
_CLOSING = re.compile(
  r"final answer is:?[ \t]*([^\n]{1,300}?)\.? I hope it is correct",
  re.IGNORECASE,
)
_ANSWER_TAG = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
_FOUR_HASHES = re.compile(r"####[ \t]*([^#\n]+)")
ANSWER_IS = re.compile(
  r"answer\s*(?:is|:|=)[\s:]*((?:[^.\n]|\.(?=\S))+)", re.IGNORECASE
)
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def last_box(text: str) -> tuple[int, int] | None:
  """Returns start and end of what is inside of the last complete box."""
  last = None
  stack: list[tuple[bool, int]] = []  # (is a box, where its inside starts)
  for match in _BRACES.finditer(text):
    if match[0] == "}":
      is_box, start = stack.pop() if stack else (False, 0)
      if is_box and (last is None or start > last[0]):
        last = (start, match.start())
    elif match[0].endswith("{") and match[0] != "\\{":
      stack.append((len(match[0]) > 1, match.end()))
  return last


# A sign is one unless it stands between two operands.
_NUMBER = re.compile(
  r"(?:(?<![\w)\]}.])-)?"
  r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
  r"(?:[eE][+-]?\d{1,3}(?!\d))?(?:/\d+)?",
  re.ASCII,
)
_LONGEST_NUMBER = 200  # characters; what is longer equals no answer


def numbers(text: str) -> list[str]:
  """Returns every number in a text, as it is written."""
  return _NUMBER.findall(text)


def last_number(text: str) -> fractions.Fraction | None:
  """Returns the last number in a text."""
  found = numbers(text)
  return as_number(found[-1]) if found else None


def as_number(text: str) -> fractions.Fraction | None:
  """Returns the number that a text is, if it is one."""
  if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
    return None
  top, _, bottom = text.replace(",", "").partition("/")
  divisor = fractions.Fraction(bottom or 1)
  return fractions.Fraction(top) / divisor if divisor else None
