"""Shows docstrings as what they are: plain text with code, not HTML."""

import re
from typing import Any

import griffe

_CODE = re.compile(r"(`[^`]*`|^ {4,}.*$)", re.MULTILINE)
_SHIFTED = re.compile(r"(?:^ {2}.*\n?)+", re.MULTILINE)


class PlainText(griffe.Extension):
  """Escapes what Markdown would take for a tag or for emphasis."""

  def on_instance(self, *, obj: griffe.Object, **unused: Any) -> None:
    """Rewrites the docstring of an object."""
    if obj.docstring is None:
      return
    text = obj.docstring.value
    if obj.is_module:  # tables and commands, shifted by two, are code
      text = _SHIFTED.sub(lambda found: f"\n{_deeper(found[0])}", text)
    parts = _CODE.split(text)
    parts[::2] = [
      re.sub(r"(\[|(?<=\w)\*)", r"\\\1", words.replace("<", "&lt;"))
      for words in parts[::2]
    ]
    obj.docstring.value = "".join(parts)


def _deeper(lines: str) -> str:
  return re.sub("^", "    ", lines, flags=re.MULTILINE)
