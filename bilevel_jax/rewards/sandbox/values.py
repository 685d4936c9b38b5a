"""Values that cross between processes as JSON: plain data, never code.

A value is JSON where JSON has it, else an object with one key that names its
type. What is no plain data crosses as a handle: a number by which the process
that has the object knows it.
"""

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

LONGEST = 2**24  # bytes of a message
_EXACT = 2**63  # larger integers are written as hexadecimal text
_HEADER = struct.Struct(">I")
_SEQUENCES = {"t": tuple, "s": set, "f": frozenset}


def encoded(value: Any, handle: Callable[[Any], int]) -> Any:
  """Returns what JSON can hold of a value.

  A subclass is written as the plain type that it is made of.

  Args:
    handle: called with an object that is no plain data; returns its number.
  """
  match value:
    case None | bool() | float() | str():
      return _plain(value)
    case int():
      number = int(value)
      return number if abs(number) < _EXACT else {"i": hex(number)}
    case list():
      return [encoded(item, handle) for item in value]
    case dict():
      pairs = value.items()
      return {"d": [[encoded(x, handle) for x in pair] for pair in pairs]}
    case tuple() | set() | frozenset():
      name = next(
        n for n, kind in _SEQUENCES.items() if isinstance(value, kind)
      )
      return {name: [encoded(item, handle) for item in value]}
    case bytes():
      return {"b": value.hex()}
    case complex():
      return {"c": [value.real, value.imag]}
    case range():
      return {"r": [value.start, value.stop, value.step]}
  if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
    return encoded(value.item(), handle)
  return {"o": handle(value)}


def _plain(value: Any) -> Any:
  for kind in (bool, float, str):
    if isinstance(value, kind):
      return kind(value)
  return None


def decoded(value: Any, thing: Callable[[int], Any]) -> Any:
  """Returns the value that `encoded` wrote.

  Args:
    thing: returns what stands for a handle.

  Raises:
    ValueError: it is nothing that `encoded` writes. Other errors of what a
      hostile writer has made of it are TypeError and RecursionError.
  """
  if isinstance(value, list):
    return [decoded(item, thing) for item in value]
  if not isinstance(value, dict):
    return value
  [(name, body)] = value.items()
  match name:
    case "i":
      return int(body, 16)
    case "d":
      return {decoded(k, thing): decoded(v, thing) for k, v in body}
    case "b":
      return bytes.fromhex(body)
    case "c":
      return complex(*body)
    case "r":
      return range(*body)
    case "o":
      return thing(int(body))
    case _ if name in _SEQUENCES:
      return _SEQUENCES[name](decoded(item, thing) for item in body)
  raise ValueError(f"no value is written as {name!r}")


def send(channel: socket.socket, message: Any) -> None:
  """Sends a JSON value.

  Raises:
    ValueError: it is longer than a message may be.
  """
  body = json.dumps(message).encode()
  if len(body) > LONGEST:
    raise ValueError(f"a message must have at most {LONGEST} bytes")
  channel.sendall(framed(body))


def framed(body: bytes) -> bytes:
  """Returns a message's bytes with their number before them."""
  return _HEADER.pack(len(body)) + body


def receive(channel: socket.socket) -> Any:
  """Returns the next JSON value.

  Raises:
    EOFError: the other side has ended.
  """
  return json.loads(_exactly(channel, length(_exactly(channel, 4))))


def length(header: bytes) -> int:
  """Returns the bytes of the message behind a header of four bytes."""
  return _HEADER.unpack(header)[0]


def _exactly(channel: socket.socket, count: int) -> bytes:
  parts = []
  while count:
    part = channel.recv(min(count, 2**20))
    if not part:
      raise EOFError
    parts.append(part)
    count -= len(part)
  return b"".join(parts)
