"""What a field of the schema is made of."""

import dataclasses
import re
from typing import Any


def setting(default: Any, doc: str, **rules: float) -> Any:
  """Returns a field with a default, its meaning, and bounds on its value.

  Args:
    doc: one line of meaning, units included.
    **rules: any of at_least, above, at_most, below.
  """
  metadata = {"doc": doc, "rules": rules}
  if isinstance(default, (dict, list)):
    return dataclasses.field(
      default_factory=lambda: type(default)(default), metadata=metadata
    )
  return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, doc: str) -> Any:
  """Returns a field that is a group of settings of its own."""
  return dataclasses.field(
    default_factory=cls, metadata={"doc": doc, "rules": {}}
  )


_UNITS = {"MB": 1e6, "GB": 1e9, "MIB": 2**20, "GIB": 2**30}


def byte_count(text: str) -> int:
  """Returns the bytes that a text such as 80GB or 1.5 GiB means.

  Raises:
    ValueError: it is no number with a unit; the message goes on after a name.
  """
  found = re.fullmatch(
    r"(\d{1,9}(?:\.\d{1,9})?) ?(\w+)", text.strip(), re.ASCII
  )
  if found is None or found[2].upper() not in _UNITS:
    raise ValueError(
      f"must be a number with one of MB, GB, MiB, GiB, got {text!r}"
    )
  return int(float(found[1]) * _UNITS[found[2].upper()])
