"""The date that chat templates are told, in place of the present."""

import datetime
import json
import time

from bilevel_jax import errors

_DIRECTIVES = "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"


def now() -> str:
  """Returns the present, in UTC, as the setting `tokenizer.date` has it."""
  return of_seconds(time.time())


def of_seconds(seconds: float) -> str:
  """Returns a time in UTC as the setting `tokenizer.date` has it."""
  moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
  return moment.replace(tzinfo=None).isoformat(timespec="seconds")


def moment(date: str) -> datetime.datetime:
  """Returns the moment that a date names.

  Raises:
    ConfigError: it names none.
  """
  try:
    return datetime.datetime.fromisoformat(date)
  except ValueError:
    raise errors.ConfigError(
      "tokenizer.date must be a date and time such as 2026-03-01T12:00:00, "
      f"got {date!r}"
    ) from None


def macro(date: str) -> str:
  """Returns a line of Jinja that puts `strftime_now` in place of the clock's.

  transformers hands templates no function of ours.
  """
  then = moment(date)
  told = "".join(
    f" | replace({json.dumps(name)}, {json.dumps(then.strftime(name))})"
    for letter in _DIRECTIVES
    for name in (f"%{letter}", f"%-{letter}")
  )
  text = "{{ format" + told + " }}"
  return "{% macro strftime_now(format) %}" + text + "{% endmacro %}\n"
