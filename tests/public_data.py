"""Public data sets that some tests read, where they lie beside the checkout.

They are not part of it: their licences differ. A test run ends with what it
left out for want of them.
"""

import os
import pathlib

import pytest

FOLDER = pathlib.Path(
  os.environ.get("BILEVEL_JAX_TEST_DATA")
  or pathlib.Path(__file__).parents[2] / "shared" / "data"
)


def path(name: str) -> pathlib.Path:
  """Returns the path of a file or folder of FOLDER; skips without it."""
  if not (FOLDER / name).exists():
    pytest.skip(f"a public data set is not in BILEVEL_JAX_TEST_DATA: {name}")
  return FOLDER / name
