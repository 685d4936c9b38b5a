"""Every way of combining SFT and RL, under one contract."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from bilevel_jax import own_code
from bilevel_jax.methods import contract

METHODS = {
  name: importlib.import_module(f"{__name__}.{name}")
  for name in (  # noqa: SIM905 -- a list would take a line for each name
    "alternating bridge chord data_mix dft grpo gta hpt implicit_reward "
    "interleaved kdrl luffy merge meta_gradient mixed non_decoupling pear "
    "prefix_rft progressive relift sasr self_teacher sft sft_then_rl shuffle "
    "srft staged trapo uft"
  ).split()
}
"""Name -> module with `build` and, where it has settings, `Options`; with
`rules` for those that several settings have to keep."""

DEFAULT = "bridge"
RANKING = {
  "method.name": "bridge",
  "method.bridge.upper": "demonstrations",
  "method.bridge.rank_only": True,
}
"""Settings of the method that ranks demonstrations and trains nothing."""


class Definition(NamedTuple):
  """What a method's file defines."""

  build: contract.Build
  options: type | None
  """Dataclass of its settings; None: it has none."""
  rules: Callable[[Any, Any], Iterable[str]]
  """(its options, the run's settings) -> a sentence for each broken rule."""
  rollouts: bool
  """Whether it ever samples: its module's ROLLOUTS, True by default."""


def find(name: str) -> Definition:
  """Returns the definition of a method.

  Args:
    name: a key of METHODS, or the dotted path of a `build` of your own, beside
      which its module may have `Options` and `rules`.

  Raises:
    ConfigError: neither, or one that cannot be imported.
  """
  if name in METHODS:
    module = METHODS[name]
    build = module.build
  else:
    build = own_code.function(name, "method.name", METHODS)
    module = importlib.import_module(own_code.split(name)[0])
  return Definition(
    build,
    getattr(module, "Options", None),
    getattr(module, "rules", lambda options, settings: ()),
    getattr(module, "ROLLOUTS", True),
  )
