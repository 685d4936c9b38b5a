"""From the turns of a dialogue to text, and which of the text has a loss.

A prompt is what the chat template renders with the header of an answer after
it; a turn of the assistant's is what the template renders after that, up to
and with the token that ends the turn. A template that says itself what the
assistant writes (`{% generation %}`) is believed. Where later turns change how
earlier ones are rendered, as where old thoughts are left out, each turn is an
example of its own.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bilevel_jax import errors, types
from bilevel_jax.data import chat_templates, special_tokens

_PROBE = "PROBE"
_REASONING = ("reasoning_content", "reasoning", "thinking")

Turn = Mapping[str, Any]


class Target(NamedTuple):
  """The text of a demonstration, special tokens of the data escaped.

  The token that ends it stands at the character `len(text)`.
  """

  text: str
  prompt: int  # characters that precede the last turn with a loss
  spans: list[tuple[int, int, float]]  # first, last + 1, weight of the loss
  end_id: int


class _Rendering(NamedTuple):
  """A turn of the assistant's with all that precedes it."""

  turn: Turn
  weight: float
  before: str  # up to where it starts
  after: chat_templates.Rendered  # and with it


class ChatTemplate:
  """A chat template, and what surrounds the assistant's text in it.

  Attributes:
    end_id: the token that ends the assistant's turn; None: a text does.
    opening: the mark that a prompt ends with, such as "<think>".
    frame: what a prompt consists of beside a question, the mark left out.
  """

  def __init__(
    self,
    template: str,
    special: special_tokens.SpecialTokens,
    variables: Mapping[str, Any],
    system: str | None,
  ):
    """Finds out how the template ends a turn.

    Args:
      variables: what it sees beside the messages.
      system: message that a dialogue begins with; None: its own, if any.

    Raises:
      ConfigError: it cannot render a question and an answer.
    """
    self._template, self._special = template, special
    self._variables, self._system = variables, system
    asked = [{"role": "user", "content": "question"}]
    answered = [*asked, {"role": "assistant", "content": _PROBE}]
    probe = [{"role": "user", "content": _PROBE}]
    whole, prompt = self._render([(answered, False), (probe, True)], {})
    if (times := whole.text.count(_PROBE)) != 1:
      raise errors.ConfigError(
        "the chat template must render the assistant's turns once, got one "
        + ("that leaves them out" if not times else f"with {times} of each")
      )
    self._tail = whole.text.partition(_PROBE)[2]
    before_end, self.end_id = special.first(self._tail)
    self._before_end = "" if self.end_id is None else before_end
    self._end = special.name(self.end_id)
    self.opening = special_tokens.opening_mark(
      prompt.text.rpartition(_PROBE)[2]
    )
    self.frame = prompt.text.removesuffix(self.opening)

  def without_end(self, text: str) -> str:
    """Returns a text without what the template puts before an end."""
    return text.removesuffix(self._before_end)

  def prompt(self, turns: Sequence[Turn], dialogue: types.Dialogue) -> str:
    """Returns the text of a prompt.

    Raises:
      ConfigError: the template does not take the dialogue.
    """
    return self._render([(turns, True)], _seen(dialogue))[0].text

  def targets(
    self,
    turns: Sequence[Turn],
    weights: Sequence[float],
    dialogue: types.Dialogue,
    end_id: int,
    end_ids: Iterable[int],
  ) -> list[Target]:
    """Returns the demonstrations that a dialogue makes.

    Args:
      turns: messages whose texts are escaped.
      weights: of each turn's loss; 0 where it has none.
      end_id: what ends a demonstration whose template has no such token.
      end_ids: tokens that may end a turn.

    Raises:
      ConfigError: the template does not take it, or leaves out a part of it.
    """
    counted = [i for i, weight in enumerate(weights) if weight]
    rendered = self._render(
      [
        request
        for i in counted
        for request in ((turns[:i], True), (turns[: i + 1], False))
      ],
      _seen(dialogue),
    )
    found = [
      _Rendering(turns[i], weights[i], before.text, after)
      for i, before, after in zip(
        counted, rendered[::2], rendered[1::2], strict=True
      )
    ]
    end_of = functools.partial(self._end_of, end_ids=frozenset(end_ids))
    whole = self._whole(found, end_of, end_id)
    if whole is not None:
      return [whole]
    return [
      self._whole([one], end_of, end_id) or self._bare(one, end_id)
      for one in found
    ]

  def _whole(
    self, found: Sequence[_Rendering], end_of, end_id
  ) -> Target | None:
    """All of a dialogue; None: the turns are not in it as they were sampled."""
    last = found[-1]
    spans, text = [], last.after.text
    at, mark, token = 0, "", None
    for one in found:
      end = end_of(one)
      if end is None:
        return None
      at, mark, token = end
      rendered = one.after.text[len(one.before) : at]
      content = special_tokens.without_mark(_content(one.turn), self.opening)
      inside = special_tokens.without_mark(rendered, self.opening)
      if (
        not text.startswith(one.before)
        or not text.startswith(one.after.text[: at + len(mark)])
        or inside != rendered
        or not _holds(inside, content, one.turn)
      ):
        return None
      spans.append((len(one.before), at + len(mark), one.weight))
    # `at`, `mark` and `token` are those of the last turn.
    if last.after.generated:
      spans = [
        (start, min(stop, at + len(mark)), weight)
        for start, stop in last.after.generated
        for first, end_at, weight in spans
        if start < end_at and stop > first
      ]
    # The end is one token, at one character beyond the text.
    spans = [
      (a, at + (b == at + len(mark)) if b >= at else b, weight)
      for a, b, weight in spans
    ]
    return Target(
      text[:at], len(last.before), spans, end_id if token is None else token
    )

  def _bare(self, one: _Rendering, end_id: int) -> Target:
    """The answer as it stands after the prompt that is sampled from.

    The template rewrites the prompt once it is answered, opens thoughts once
    more, or leaves out a part of the answer.
    """
    text = special_tokens.without_mark(_content(one.turn), self.opening)
    dialogue, tail = one.after.text, self._tail
    if dialogue.startswith(one.before) and dialogue.endswith(tail):
      rendered = special_tokens.without_mark(
        dialogue[len(one.before) : len(dialogue) - len(tail)], self.opening
      )
      if _holds(rendered, text, one.turn):
        return self._after(one, rendered, end_id)
    if not _holds(text, text, one.turn):
      raise errors.ConfigError(
        "the chat template must render all of an assistant's turn, got one "
        "that leaves out tool calls or thoughts of "
        f"{self._special.restored(str(dict(one.turn))):.200}"
      )
    return self._after(one, text, end_id)

  def _after(self, one: _Rendering, text: str, end_id: int) -> Target:
    text, start = one.before + text + self._before_end, len(one.before)
    end_id = end_id if self.end_id is None else self.end_id
    return Target(text, start, [(start, len(text) + 1, one.weight)], end_id)

  def _end_of(
    self, one: _Rendering, end_ids: frozenset[int]
  ) -> tuple[int, str, int | None] | None:
    """Where a turn's text ends, and what ends it: its text and id."""
    text = one.after.text
    if text.endswith(self._tail):
      at = len(text) - len(self._tail) + len(self._before_end)
      return at, self._end, self.end_id
    found = [
      (at, name, number)
      for at, name, number in self._special.all(text)
      if number in end_ids and at >= len(one.before)
    ]
    return found[-1] if found else None

  def _render(
    self,
    dialogues: Sequence[tuple[Sequence[Turn], bool]],
    variables: Mapping[str, Any],
  ) -> list[chat_templates.Rendered]:
    started = [
      (with_system(turns, self._system), header) for turns, header in dialogues
    ]
    try:
      return chat_templates.render(
        self._template, started, {**self._variables, **variables}
      )
    except errors.ConfigError as error:
      has_system = started[0][0][:1] and started[0][0][0]["role"] == "system"
      raise errors.ConfigError(
        "the chat template must render a dialogue"
        f"{' with a system prompt' if has_system else ''}, got "
        f"{' '.join(str(error).split())[:300]}"
      ) from error


def lines(turns: Sequence[Turn]) -> str:
  """Returns what precedes an answer where there is no chat template."""
  return "".join(f"{_content(turn)}\n" for turn in turns)


def line_targets(
  turns: Sequence[Turn], weights: Sequence[float], opening: str, end_id: int
) -> list[Target]:
  """Returns a demonstration of each turn where there is no chat template.

  Args:
    weights: of the last turns, as many as it has; 0 where there is no loss.
    opening: the mark that a prompt ends with.
  """
  targets = []
  for at, weight in enumerate(weights, start=len(turns) - len(weights)):
    if weight:
      before = lines(turns[:at])
      content = special_tokens.without_mark(_content(turns[at]), opening)
      span = len(before), len(before + content) + 1, weight
      targets.append(Target(before + content, len(before), [span], end_id))
  return targets


def with_system(turns: Sequence[Turn], system: str | None) -> list[Turn]:
  """Returns the turns after a system message, where they have none."""
  has_system = bool(turns) and turns[0]["role"] == "system"
  if system is None or has_system:
    return list(turns)
  return [{"role": "system", "content": system}, *turns]


def escaped(
  turn: Turn, escape_own: special_tokens.Escape, escape: special_tokens.Escape
) -> Turn:
  """Returns a turn with an escape in place of each special token of its texts.

  Args:
    escape_own: puts them into the assistant's texts.
    escape: puts them into all other texts.
  """
  chosen = escape_own if turn["role"] == "assistant" else escape
  return {
    name: value if name == "role" else mapped(value, chosen)
    for name, value in turn.items()
    if name != "weight"
  }


def mapped(value: Any, change: special_tokens.Escape) -> Any:
  """Returns a value of JSON with another text in place of each text."""
  if isinstance(value, str):
    return change(value)
  if isinstance(value, Mapping):
    return {name: mapped(inner, change) for name, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [mapped(inner, change) for inner in value]
  return value


def loss_weights(turns: Sequence[Turn]) -> list[float]:
  """Returns what each turn's loss is multiplied by; 0 where it has none."""
  return [
    float(turn.get("weight", 1.0)) if turn["role"] == "assistant" else 0.0
    for turn in turns
  ]


def _seen(dialogue: types.Dialogue) -> dict[str, Any]:
  tools = {} if dialogue.tools is None else {"tools": list(dialogue.tools)}
  return {**dialogue.variables, **tools}


def _content(turn: Turn) -> str:
  return turn.get("content") or ""


def _holds(rendered: str, content: str, turn: Turn) -> bool:
  """Whether all that a turn says is in what was made of it."""
  calls = [
    str((call.get("function") or call).get("name", ""))
    for call in turn.get("tool_calls") or ()
  ]
  thoughts = [str(turn[name]) for name in _REASONING if turn.get(name)]
  return (
    special_tokens.holds(rendered, content)
    and all(name in rendered for name in calls)
    and all(special_tokens.holds(rendered, text) for text in thoughts)
  )
