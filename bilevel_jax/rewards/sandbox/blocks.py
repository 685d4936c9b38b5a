"""The program in a completion."""

_FENCE = "```"
_THOUGHT = "</think>"


def program(completion: str) -> str:
  """Returns the program that a completion gives; "" if it gives none.

  It is what is between the last two lines that have three backticks, as
  LiveCodeBench has it (`lcb_runner.utils.extraction_utils`), of what comes
  behind the last `</think>`. A text without any such line is a program as it
  is: the continuation of a prompt that is code (HumanEval). One with a single
  such line has been cut off, and gives none.
  """
  text = completion.rpartition(_THOUGHT)[2]
  lines = text.split("\n")
  fences = [n for n, line in enumerate(lines) if _FENCE in line]
  if not fences:
    return text
  if len(fences) < 2:
    return ""
  return "\n".join(lines[fences[-2] + 1 : fences[-1]])
