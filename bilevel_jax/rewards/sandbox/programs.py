"""What runs in the process of a program, or of its tests: three kinds of job.

`run`: the program from top to bottom, as a script. `serve`: the program, then
what is asked of its names, as data. `check`: the tests' own text, in which the
program's names stand for what another process serves. The text of tests is in
no process that a program runs in.
"""

import atexit
import builtins
import contextlib
import math
import random
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bilevel_jax.rewards.sandbox import values


def run_script(job: Mapping[str, Any]) -> int:
  """Runs a program as a script; returns its exit code."""
  code = 0
  try:
    _execute(job["program"])
  except SystemExit as error:
    code = error.code if isinstance(error.code, int) else int(bool(error.code))
  except BaseException:
    code = 1
  try:
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue] -- as the interpreter ends
    atexit._run_exitfuncs()
    sys.stdout.flush()
  except BaseException:
    return 1
  return code & 255


def _execute(program: str) -> types.ModuleType:
  """Returns the module `__main__` that a program has made."""
  module = types.ModuleType("__main__")
  sys.modules["__main__"] = module
  sys.argv = ["program.py"]
  random.seed(0)  # a reward is a function of the text
  exec(compile(program, "program.py", "exec"), module.__dict__)
  return module


def serve(job: Mapping[str, Any], channel: socket.socket) -> int:
  """Runs a program, then answers what it is asked for until nobody asks.

  An answer is {"v": value}, or {"e": name of an exception, "m": its text}.
  """
  held: list[Any] = []

  def handle(thing: Any) -> int:
    held.append(thing)
    return len(held) - 1

  try:
    names = _execute(job["program"]).__dict__
    answer: dict[str, Any] = {"v": None}
  except BaseException as error:
    names, answer = {}, _failure(error)
  while True:
    values.send(channel, answer)
    question = values.receive(channel)
    try:
      found = _answer(values.decoded(question, held.__getitem__), names)
      answer = {"v": values.encoded(found, handle)}
    except BaseException as error:
      answer = _failure(error)


def _failure(error: BaseException) -> dict[str, str]:
  return {"e": type(error).__name__, "m": str(error)[:1000]}


def _answer(question: list[Any], names: Mapping[str, Any]) -> Any:
  match question:
    case ["name", name]:
      if name not in names and hasattr(names.get("Solution"), name):
        return getattr(names["Solution"](), name)  # as LeetCode has it
      if name not in names:
        raise NameError(f"name {name!r} is not defined")
      return names[name]
    case ["call", function, arguments, named]:
      return function(*arguments, **named)
    case ["get", thing, name]:
      return getattr(thing, name)
    case ["set", thing, name, value]:
      return setattr(thing, name, value)
    case ["item", thing, key]:
      return thing[key]
    case ["length", thing]:
      return len(thing)
    case ["list", thing]:
      return list(thing)
  raise ValueError(f"no such question: {question[0]!r}")


class Asking:
  """The questions that `serve` answers."""

  def __init__(self, exchange: Callable[[Any], Any]):
    """Takes what sends a question and returns its answer, both as JSON.

    Args:
      exchange: raises EOFError where there is no answer, or none in time.
    """
    self._exchange = exchange
    self.ended = False
    """Whether the program answers no more."""

  def ask(self, *question: Any) -> Any:
    """Returns an answer; what the program raised is raised again.

    A built-in exception is raised as itself, any other as a RuntimeError.

    Raises:
      EOFError: it answers no more.
    """
    if self.ended:
      raise EOFError
    try:
      answer = self._exchange(values.encoded([*question], _no_handle))
    except EOFError:
      self.ended = True
      raise
    if "e" in answer:
      raise _exception(str(answer["e"]), str(answer["m"]))
    return values.decoded(answer["v"], lambda number: Remote(self, number))


def _exception(name: str, text: str) -> Exception:
  kind = getattr(builtins, name, None)
  if isinstance(kind, type) and issubclass(kind, Exception):
    with contextlib.suppress(TypeError):  # those of Unicode want more
      return kind(text)
  return RuntimeError(text)


def _no_handle(thing: Any) -> int:
  if type(thing) is Remote:
    return thing.__number__
  raise TypeError(f"a {type(thing).__name__} is no plain data")


class Remote:
  """An object of the program, as its tests see it.

  It is equal to itself alone: whether two things are equal is never asked of
  the program, nor is anything else that compares.
  """

  __slots__ = ("__asking__", "__number__")
  __asking__: Asking
  __number__: int

  def __init__(self, asking: Asking, number: int):
    object.__setattr__(self, "__asking__", asking)
    object.__setattr__(self, "__number__", number)

  def __call__(self, *arguments: Any, **named: Any) -> Any:
    return self.__asking__.ask("call", self, [*arguments], named)

  def __getattr__(self, name: str) -> Any:
    if name.startswith("__"):
      raise AttributeError(name)
    return self.__asking__.ask("get", self, name)

  def __setattr__(self, name: str, value: Any) -> None:
    self.__asking__.ask("set", self, name, value)

  def __getitem__(self, key: Any) -> Any:
    return self.__asking__.ask("item", self, key)

  def __len__(self) -> int:
    return self.__asking__.ask("length", self)

  def __bool__(self) -> bool:
    return True

  def __iter__(self) -> Iterator[Any]:
    found = self.__asking__.ask("list", self)
    if type(found) is not list:
      raise TypeError("the program's object is no list")
    return iter(found)


class _Names(dict):
  """Names of the tests' text; those that it does not define are the program's.

  Built-in names are the tests' own, but for those that are asked of the
  program: else a program could say what `abs` is.
  """

  def __init__(self, asking: Asking, entry: str | None):
    super().__init__(__name__="tests", __builtins__=builtins, math=math)
    self._asking, self._entry = asking, entry

  def __missing__(self, name: str) -> Any:
    if name != self._entry and hasattr(builtins, name):
      return getattr(builtins, name)
    return self._asking.ask("name", name)


def check(job: Mapping[str, Any], channel: socket.socket) -> int:
  """Runs the tests' text; sends {"passed": [whether each statement passed]}."""

  def exchange(question: Any) -> Any:
    values.send(channel, question)
    return values.receive(channel)

  asking = Asking(exchange)
  names = _Names(asking, job["entry"])
  passed = []
  for number, text in enumerate([job["setup"], *job["statements"]]):
    try:
      exec(compile(text, "tests.py", "exec"), names)
      is_right = not asking.ended  # a test may expect any exception
    except Exception:
      is_right = False
    if number:
      passed.append(is_right)
    if asking.ended or not (is_right or (number and job["go_on"])):
      break
  values.send(channel, {"passed": passed})
  return 0
