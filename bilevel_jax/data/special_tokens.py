"""Special tokens in data are text; in templates and settings they are tokens.

What a question says must not start or end a turn. So its special tokens are
escaped while a template is filled, and what holds an escape is encoded with
special tokens taken as text.
"""

import re
import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

Escape: TypeAlias = Callable[[str], str]
"""A text -> the same with escapes."""

_ESCAPE = "\U000f0000"  # a private character; doubled it stands for itself


class SpecialTokens:
  """The special tokens of a tokenizer.

  Attributes:
    ids: text of each -> its id.
  """

  def __init__(self, ids: Mapping[str, int]):
    self.ids = dict(ids)
    self._names = sorted(ids, key=len, reverse=True)  # the longest that fits
    self._any = re.compile("|".join(map(re.escape, self._names)) or r"(?!)")

  def escaped(self, text: str, kept: Iterable[str] = ()) -> str:
    """Returns the text with an escape in place of each special token.

    Args:
      kept: special tokens that stay as they are.
    """
    number = {name: i for i, name in enumerate(self._names)}
    for name in kept:
      number.pop(name, None)

    def escape(match: re.Match[str]) -> str:
      name = match[0]
      if name not in number:
        return name
      return _ESCAPE + chr(ord(_ESCAPE) + 1 + number[name])

    return self._any.sub(escape, text.replace(_ESCAPE, 2 * _ESCAPE))

  def restored(self, text: str) -> str:
    """Returns the text before it was escaped."""

    def restore(match: re.Match[str]) -> str:
      number = ord(match[1]) - ord(_ESCAPE) - 1
      return _ESCAPE if number < 0 else self._names[number]

    last = chr(ord(_ESCAPE) + len(self._names))
    return re.sub(f"{_ESCAPE}([{_ESCAPE}-{last}])", restore, text)

  def encode(
    self, text: str, encode: Callable[[str, bool], list[int]]
  ) -> list[int]:
    """Returns the ids of a text with escapes.

    Args:
      encode: (text, whether special tokens in it are text) -> ids.
    """
    if _ESCAPE not in text:
      return encode(text, False)
    pieces, start = [""], 0
    for match in self._any.finditer(text):
      pieces[-1] += text[start : match.start()]
      pieces += [match[0], ""]
      start = match.end()
    pieces[-1] += text[start:]
    ids, plain = [], ""
    for piece in pieces:
      if _ESCAPE in piece:
        ids += encode(plain, False) if plain else []
        ids += encode(self.restored(piece), True)
        plain = ""
      else:
        plain += piece
    return ids + (encode(plain, False) if plain else [])

  def name(self, token: int | None) -> str:
    """Returns the text of a special token; "" of None."""
    return next((name for name, i in self.ids.items() if i == token), "")

  def all(self, text: str) -> list[tuple[int, str, int]]:
    """Returns where each special token in a text is, its text and its id."""
    found = self._any.finditer(text)
    return [(match.start(), match[0], self.ids[match[0]]) for match in found]

  def first(self, text: str) -> tuple[str, int | None]:
    """Returns what precedes the first special token in a text, and its id.

    ("", None) where there is none.
    """
    match = self._any.search(text)
    return (
      ("", None)
      if match is None
      else (text[: match.start()], self.ids[match[0]])
    )


class Fields(string.Formatter):
  """`str.format` with special tokens escaped in what is put in."""

  def __init__(self, special: SpecialTokens):
    self._special = special

  def format_field(self, value: Any, format_spec: str) -> str:
    """Returns a field's text, escaped."""
    return self._special.escaped(super().format_field(value, format_spec))


_MARK = r"(<[|\w.-]+>|\[\w+\])"  # <think>, [THINK]


def opening_mark(text: str) -> str:
  """Returns the mark that a text ends with, blanks after it included.

  Such as "<think>" and a newline; "" where there is none.
  """
  match = re.search(_MARK + r"\s*$", text)
  return "" if match is None else match[0]


def without_mark(text: str, opening: str) -> str:
  """Returns a text without the mark that it begins with, if it is that one.

  Args:
    opening: what precedes the text, from `opening_mark`.
  """
  mark, inside = opening.rstrip(), text.lstrip()
  if not mark or not inside.startswith(mark):
    return text
  return inside.removeprefix(mark).removeprefix(opening[len(mark) :])


def holds(rendered: str, text: str) -> bool:
  """Returns whether all of a text is in what was made of it, once.

  Blanks may differ; a mark that the text begins with must not have another
  one of the same before it.
  """
  squeezed = lambda x: "".join(x.split())
  if squeezed(text) not in squeezed(rendered):
    return False
  mark = re.match(r"\s*" + _MARK, text)
  return mark is None or rendered.count(mark[1]) == text.count(mark[1])
