"""Rows as people have them, told apart by their columns, as questions.

  question | problem    with answer, solution: worded by tokenizer.prompt
  prompt                TRL's, with completion, or verl's: a text that is
                        continued as it stands, or messages
  messages              a dialogue, also as ShareGPT's `conversations`
  instruction           Alpaca's, with input, output, history
  chosen, rejected      TRL's preferences: what is chosen is the demonstration

Beside them may stand: id, answer, system, tools, chat_template_kwargs, weight.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bilevel_jax import errors, types
from bilevel_jax.data import chat_templates, columns

_LONGEST_BARE = 5  # words of a solution that may be an answer alone


def question(row: columns.Row, fields: Mapping[str, str]) -> types.Question:
  """Returns what a row says; "" for what it does not have.

  Args:
    fields: our names -> theirs; a dot leads into a mapping.

  Raises:
    ConfigError: it says nothing that can be asked, says it in two ways, or
      has a value that is not what its column must have.
  """
  reader = columns.Reader(row, fields)
  form = reader.form()
  weight = reader.number("weight")
  asked, dialogue, solution = _BY_FORM[form](reader)
  answer = reader.text("answer")
  if answer is None:
    answer = reader.ground_truth()
  if answer is not None and solution is None and "\n#### " in answer:
    solution = answer  # GSM8K's own
    answer = None
  if answer is None and solution is not None:
    if "####" in solution:
      answer = solution.rpartition("####")[2].strip()
    elif "\\boxed" in solution:
      answer = solution  # whose last box it is
  return types.Question(
    reader.text("id") or "",
    asked,
    answer or "",
    solution or None,
    reader.rest(),
    dialogue,
    1.0 if weight is None else weight,
  )


def is_bare(solution: str, answer: str) -> bool:
  """Returns whether a solution says no more than the answer.

  Args:
    answer: empty: a solution of one line and few words is an answer.
  """
  text = solution.strip().strip("$").strip()
  if text.startswith("\\boxed{") and text.endswith("}"):
    text = text.removeprefix("\\boxed{").removesuffix("}")
  if answer and answer != solution:
    return text == answer.strip().strip("$").strip()
  return "\n" not in text and len(text.split()) <= _LONGEST_BARE


def may_be_answer(
  row: columns.Row, asked: types.Question, fields: Mapping[str, str]
) -> bool:
  """Returns whether a row's solution may be TRL's, which a reward reads.

  Beside `prompt`, no answer, and no more than an answer would say.
  """
  return (
    {"prompt", "solution"} <= row.values.keys()
    and not {"answer", "reward_model"} & row.values.keys()
    and not {"answer", "solution", "prompt"} & fields.keys()
    and asked.solution is not None
    and is_bare(asked.solution, asked.answer)
  )


# What is asked, the dialogue that it is in, and the solution.
_Read = tuple[str, types.Dialogue | None, str | None]


def _of_question(reader: columns.Reader) -> _Read:
  name = "question" if reader.column("question") else "problem"
  asked = reader.text(name)
  assert asked is not None
  solution = reader.text("solution")
  turns = [{"role": "user", "content": asked}]
  if solution is not None:
    turns.append({"role": "assistant", "content": solution})
  made = _dialogue(reader, turns, 1)
  plain = (
    made.tools is None and not made.variables and len(made.turns) == len(turns)
  )
  return asked, None if plain else made, solution


def _of_prompt(reader: columns.Reader) -> _Read:
  pair = "chosen" if reader.column("chosen") else "completion"
  turns, said = reader.messages("prompt"), reader.messages(pair)
  if turns is None and said is not None and pair == "chosen":
    # The prompt is in both of them: all that they have in common.
    turns, said = [], said
    if reader.column("prompt") is None:
      rejected = reader.messages("rejected") or []
      same = [a == b for a, b in zip(said, rejected, strict=False)]
      cut = same.index(False) if False in same else len(same) - 1
      turns, said = said[:cut], said[cut:]
    else:
      turns = [{"role": "user", "content": reader.text("prompt")}]
  solution = reader.text("solution") if pair == "completion" else None
  if solution is not None and reader.column(pair):
    raise errors.ConfigError(
      f"{reader.row.where} has two demonstrations, in the columns completion "
      "and solution: say which one is meant by `fields`, such as "
      "fields.answer=solution where it is only the answer"
    )
  if turns is None:
    text = reader.text("prompt")
    if text is None:
      raise reader.missing("prompt")
    if solution is None and reader.column(pair):
      solution = reader.text(pair)
    return text, types.Dialogue(), solution
  if said is None and reader.column(pair):
    solution = reader.text(pair)
  if said is None:
    said = (
      [] if solution is None else [{"role": "assistant", "content": solution}]
    )
  # What the prompt says is given: no loss on it.
  asked = [
    {**turn, "weight": 0.0} if turn["role"] == "assistant" else turn
    for turn in turns
  ]
  dialogue = _dialogue(reader, [*asked, *said], len(asked))
  return _last_user(dialogue), dialogue, _solution(dialogue)


def _of_messages(reader: columns.Reader) -> _Read:
  name = "messages" if reader.column("messages") else "conversations"
  turns = reader.messages(name)
  if not turns:
    raise reader.refused(
      str(reader.column(name)), "a list of messages", reader.value(name)
    )
  solution = reader.text("solution")
  ends = turns[-1]["role"] == "assistant"
  if solution is not None:
    if ends:
      raise errors.ConfigError(
        f"{reader.row.where} has two demonstrations, the last of {name} and "
        "the column solution: say which one is meant by `fields`, such as "
        "fields.answer=solution where it is only the answer"
      )
    turns, ends = [*turns, {"role": "assistant", "content": solution}], True
  dialogue = _dialogue(reader, turns, len(turns) - ends)
  return _last_user(dialogue), dialogue, _solution(dialogue)


def _of_instruction(reader: columns.Reader) -> _Read:
  asked = reader.text("instruction")
  assert asked is not None
  if more := reader.text("input"):
    asked = f"{asked}\n{more}"
  turns = []
  for pair in reader.json("history", list, "a list of pairs") or []:
    if not columns.are_texts(pair) or len(pair) != 2:
      raise reader.refused("history", "a list of pairs of texts", pair)
    turns += [
      {"role": "user", "content": pair[0]},
      {"role": "assistant", "content": pair[1]},
    ]
  turns.append({"role": "user", "content": asked})
  count, solution = len(turns), reader.text("output")
  if solution:
    turns.append({"role": "assistant", "content": solution})
  dialogue = _dialogue(reader, turns, count)
  return asked, dialogue, _solution(dialogue)


_BY_FORM: dict[str, Callable[[columns.Reader], _Read]] = {
  "question": _of_question,
  "prompt": _of_prompt,
  "messages": _of_messages,
  "instruction": _of_instruction,
}


def _dialogue(
  reader: columns.Reader, turns: Sequence[dict[str, Any]], asked: int
) -> types.Dialogue:
  """The dialogue with the row's system message, tools and variables."""
  system = reader.text("system")
  if system:
    if turns and turns[0]["role"] == "system":
      raise errors.ConfigError(
        f"{reader.row.where} has two system messages, of the column system and "
        "of the dialogue"
      )
    turns, asked = [{"role": "system", "content": system}, *turns], asked + 1
  if not any(turn["role"] == "user" for turn in turns[:asked]):
    raise errors.ConfigError(
      f"{reader.row.where} must ask something: no message of a user precedes "
      "the last answer"
    )
  variables = reader.json("chat_template_kwargs", Mapping, "an object") or {}
  for name in chat_templates.RESERVED & variables.keys():
    raise errors.ConfigError(
      f"{reader.row.where}: field 'chat_template_kwargs' must not have {name}"
    )
  tools = reader.json("tools", list, "a list of JSON schemas")
  return types.Dialogue(
    tuple(turns),
    asked,
    tuple(tools) if tools else None,
    variables,
  )


def _last_user(dialogue: types.Dialogue) -> str:
  texts = [
    t["content"]
    for t in dialogue.turns[: dialogue.asked]
    if t["role"] == "user"
  ]
  return texts[-1]


def _solution(dialogue: types.Dialogue) -> str | None:
  """The last turn that has a loss; None: none has."""
  for turn in reversed(dialogue.turns):
    if turn["role"] == "assistant" and turn.get("weight", 1.0):
      return turn["content"] or json.dumps(turn.get("tool_calls"))
  return None


def bare_solutions(questions: Iterable[types.Question]) -> tuple[int, int]:
  """Returns how many solutions are an answer alone, and how many there are."""
  solved = [q for q in questions if q.solution]
  return sum(is_bare(str(q.solution), q.answer) for q in solved), len(solved)
