"""Checksums of the files of a directory: what is read is what was written."""

import concurrent.futures
import fnmatch
import json
import os
import pathlib
import zlib
from collections.abc import Sequence

import jax

FILE = "checksums.json"
_THREADS = 4  # files and CRCs are read without Python's lock
_BLOCK_BYTES = 2**22


def write(directory: pathlib.Path, paths: Sequence[pathlib.Path]) -> None:
  """Writes sizes and CRC-32s of files into checksums.json.

  Args:
    directory: that gets the file, above all of `paths`.
    paths: of the files, at any depth below `directory`.
  """
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    sums = {
      path.relative_to(directory).as_posix(): measured
      for path, measured in zip(paths, pool.map(_measure, paths), strict=True)
    }
  with (directory / FILE).open("w", encoding="utf-8") as file:
    json.dump(sums, file, indent=1)
    file.flush()
    os.fsync(file.fileno())


def damage(directory: pathlib.Path, pattern: str = "*") -> str | None:
  """Returns how files differ from what was written; None: not at all.

  A directory without checksums is taken as it is. Of several processes each
  looks at its share of the files.

  Args:
    pattern: of the files, such as metrics/*.
  """
  try:
    sums = json.loads((directory / FILE).read_text("utf-8"))
    written = {name: (size, crc) for name, (size, crc) in sums.items()}
  except FileNotFoundError:
    return None
  except (OSError, ValueError, RecursionError, TypeError, AttributeError):
    return f"{FILE} cannot be read"
  names = fnmatch.filter(sorted(written), pattern)
  mine = names[jax.process_index() :: jax.process_count()]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(
      lambda name: _compare(directory, name, *written[name]), mine
    )
    return next(filter(None, found), None)


def _measure(path: pathlib.Path) -> tuple[int, int]:
  size = crc = 0
  with path.open("rb") as file:
    while block := file.read(_BLOCK_BYTES):
      size, crc = size + len(block), zlib.crc32(block, crc)
  return size, crc


def _compare(
  directory: pathlib.Path, name: str, size: int, crc: int
) -> str | None:
  try:
    now = (directory / name).stat().st_size
    if now != size:
      return f"{name} has {now} bytes, {size} were written"
    if _measure(directory / name) != (size, crc):
      return f"{name} has other bytes than were written"
  except OSError as error:
    return f"{name} cannot be read ({error.strerror})"
  return None
