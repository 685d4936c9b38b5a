"""What a field of the schema is made of."""

import dataclasses
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
