"""What every study starts from, whatever the library's defaults become.

    python -m experiments.engine.pinned

writes the defaults of today into pinned.json; studies that were run before are
then other studies.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from bilevel_jax import config, errors

FILE = pathlib.Path(__file__).with_suffix(".json")


def defaults() -> dict[str, Any]:
  """Returns every setting by its dotted name; of a new one, its default.

  Raises:
    ConfigError: a pinned setting is no more.
  """
  pinned, now = json.loads(FILE.read_text("utf-8")), config.defaults()
  for name in pinned:
    if name not in now:
      raise errors.ConfigError(f"{FILE.name} pins {name}, which is no setting")
  return now | pinned


def settings(changes: ml_collections.ConfigDict | None = None) -> Any:
  """Returns the pinned settings as a ConfigDict.

  Args:
    changes: what differs from the library's defaults here is changed.
  """
  now, found = config.defaults(), config.default_config()
  given = dict(config.flat(changes.to_dict())) if changes is not None else {}
  _update(found, {n: v for n, v in defaults().items() if v != now[n]})
  _update(found, {n: v for n, v in given.items() if not _same(v, now.get(n))})
  return found


def _update(settings: Any, values: Mapping[str, Any]) -> None:
  settings.update_from_flattened_dict(dict(values))


def _same(value: Any, default: Any) -> bool:
  # A tuple comes back from JSON as a list.
  return json.dumps(value) == json.dumps(default)


if __name__ == "__main__":
  FILE.write_text(json.dumps(config.defaults(), indent=1) + "\n", "utf-8")
