"""What a study consists of: regimes, ways of training, seeds, questions."""

import copy
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import ml_collections

from bilevel_jax import config, errors
from bilevel_jax.rewards import verifiers

MAIN = "methods"

Prepare: TypeAlias = Callable[
  [ml_collections.ConfigDict, pathlib.Path, pathlib.Path | None], None
]
"""(settings, directory, earlier) -> None: changes data.questions and
data.demonstrations of the settings, by files that it writes into the directory;
earlier: the directory of the run of `Arm.after`. A function of a module that
can be imported, for runs side by side are processes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A table of the results: what its arms have in common."""

  about: str  # a sentence or more
  seeds: Sequence[int]  # of each arm
  reference: str | None = None
  """The arm that its others are compared with; None: the study's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """One way of training: changes to the settings that all arms share."""

  changes: Mapping[str, Any] | None  # by dotted names; None: no training
  search: Sequence[Mapping[str, Any]] = ({},)
  """Tried with the tuning seed; what is best on the validation questions is
  kept for all other seeds."""
  takes: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
  """Settings that are another arm's choice: by dotted name, that arm and the
  name of the setting in its search."""
  tuned_as: str | None = None  # the arm whose choice is taken, with no search
  table: str = MAIN  # of Study.tables
  start: str | None = None  # the stage it starts from; None: the regime's last
  prepare: Prepare | None = None
  after: str | None = None  # the arm whose run of the same seed it needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regime:
  """A policy to start from and data, and what is tried on it."""

  about: str  # a sentence
  arms: Mapping[str, Arm]
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  """To the study's settings, by dotted names."""
  searched_in: str | None = None
  """The regime whose searches choose for its arms, in place of their own."""
  stages: Sequence[str] = ()
  """Names of Study.stages, of which the last leaves the policy; none: it is
  the study's `settings.model.weights`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """Methods by seeds, under one budget."""

  name: str
  about: str  # a paragraph for whoever reads the results
  settings: ml_collections.ConfigDict  # that all arms share, the budget too
  regimes: Mapping[str, Regime]
  tests: Mapping[str, config.Source]  # questions that are scored at the end
  test_tokens: int  # longest answer to them
  verifier: str  # what says whether it is right, whatever the reward was
  tables: Mapping[str, Table]
  tuning_seed: int
  reference: str  # the arm that the others are compared with
  stages: Mapping[str, ml_collections.ConfigDict] = dataclasses.field(
    default_factory=dict
  )
  """Runs that make the policies, each from the export of the one before."""
  good: str | None = None
  """The group of demonstrations whose weights should be the largest."""
  base: str | None = None
  """The arm without training by whose pass rates tests are told apart."""
  pass_rate_samples: int = 16  # of each test question, for those
  oracle: str | None = None
  """The arm that has what the others must find out: how much of the way to it
  from `reference` each comes."""
  picture: Callable[[Mapping[str, Any]], Any] | None = None
  """Returns the figure, of matplotlib, of a study's results."""
  findings: str = ""
  """What was found, in Markdown; its numbers are places in the results, which
  `findings.fill` fills."""

  def references(self) -> dict[str, str]:
    """Returns, for each table, the arm that its others are compared with."""
    return {n: t.reference or self.reference for n, t in self.tables.items()}

  def seeds(self, arm: Arm) -> Sequence[int]:
    """Returns the seeds that an arm is reported with."""
    seeds = self.tables[arm.table].seeds
    return seeds if arm.changes is not None else seeds[:1]  # nothing is random


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One training run of a study."""

  path: str  # of its directory, below the study's
  settings: ml_collections.ConfigDict
  start: str | None  # path of the job whose export it starts from, if any
  train: bool = True
  tested: bool = False  # whether the tests are scored
  sampled: bool = False  # whether their pass rates are measured
  prepare: Prepare | None = None
  after: str | None = None  # path of the job whose run `prepare` reads


def check(study: Study) -> None:
  """Returns nothing if the parts of a study fit each other.

  Raises:
    ConfigError: a name that nothing has, nothing to do, or an arm whose
      settings break a rule.
  """
  if not study.name or "/" in study.name:
    raise errors.ConfigError(
      f"a study's name must be that of a directory, got {study.name!r}"
    )
  if not isinstance(study.settings, ml_collections.ConfigDict):
    raise errors.ConfigError(
      "a study's settings must be what config.default_config() returned, with "
      f"changes, got {study.settings!r:.50}"
    )
  if not any(regime.arms for regime in study.regimes.values()):
    raise errors.ConfigError("a study must have an arm in a regime, got none")
  for name, table in study.tables.items():
    if not table.seeds:
      raise errors.ConfigError(f"table {name} of the study has no seeds")
  verifiers.build({study.verifier: 1.0})
  arms = [a for r in study.regimes.values() for a in r.arms.items()]
  used = {given.table for _, given in arms}
  for name, reference in study.references().items():
    if name in used:
      _check_names(f"table {name}: reference", [reference], dict(arms))
  for name, regime in study.regimes.items():
    _check_names(f"regime {name}: stages", regime.stages, study.stages)
    _check_names(
      f"regime {name}: searched_in",
      [regime.searched_in],
      [None, *study.regimes],
    )
    for arm, given in regime.arms.items():
      where = f"arm {arm} of regime {name}:"
      sources = [source for source, _ in given.takes.values()]
      _check_names(f"{where} table", [given.table], study.tables)
      _check_names(f"{where} start", [given.start], [None, *study.stages])
      _check_names(f"{where} tuned_as", [given.tuned_as], [None, *regime.arms])
      _check_names(f"{where} after", [given.after], [None, *regime.arms])
      _check_names(f"{where} takes", sources, regime.arms)
    try:
      for jobs in final(study, name, {}).values():
        for job in jobs.values():
          config.parse(job.settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      # A ConfigDict names all the fields that it has.
      words = str(error).split(" Other fields present")[0]
      raise errors.ConfigError(f"regime {name}: {words}") from error


def _check_names(what: str, names: Iterable[Any], known: Iterable[Any]) -> None:
  for name in names:
    if name not in known:
      words = "; ".join(map(str, known)) or "nothing"
      raise errors.ConfigError(f"{what} must be of {words}, got {name!r}")


def stages(study: Study, regime: Regime) -> list[Job]:
  """Returns the jobs that make a regime's policy, in their order."""
  jobs, start = [], None
  for name in regime.stages:
    path = f"policies/{name}"
    jobs.append(Job(path=path, settings=study.stages[name], start=start))
    start = path
  return jobs


def tuning(
  study: Study, name: str, chosen: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Job]]:
  """Returns the jobs of each search, for arms with a choice to make.

  An arm that takes what another's search chooses waits for it.

  Args:
    chosen: by arm, the point that each finished search chose.
  """
  return {
    arm: [
      _job(
        study,
        name,
        f"tuning/{arm}-{n}",
        (given.changes, _taken(given, chosen), point),
        given,
      )
      for n, point in enumerate(given.search)
    ]
    for arm, given in study.regimes[name].arms.items()
    if len(given.search) > 1
    and given.changes is not None
    and all(source in chosen for source, _ in given.takes.values())
  }


def _taken(arm: Arm, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  return {
    name: chosen[source][setting]
    for name, (source, setting) in arm.takes.items()
    if source in chosen
  }


def final(
  study: Study, name: str, chosen: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[int, Job]]:
  """Returns the jobs that are reported, by arm and seed.

  Args:
    chosen: by arm, the point that each finished search chose.
  """
  jobs: dict[str, dict[int, Job]] = {}
  for arm, given in study.regimes[name].arms.items():
    point = chosen.get(given.tuned_as or arm, given.search[0])
    jobs[arm] = {
      seed: _job(
        study,
        name,
        f"{arm}/seed-{seed}",
        ({"seed": seed}, point, _taken(given, chosen), given.changes or {}),
        given,
        train=given.changes is not None,
        tested=True,
        sampled=arm == study.base,
        after=given.after and f"{name}/{given.after}/seed-{seed}",
      )
      for seed in study.seeds(given)
    }
  return jobs


def _job(
  study: Study,
  regime: str,
  path: str,
  changes: Sequence[Mapping[str, Any]],
  arm: Arm,
  **more: Any,
) -> Job:
  # References between settings hold until every change is made.
  settings: Any = copy.deepcopy(study.settings)
  settings.seed = study.tuning_seed
  for change in (study.regimes[regime].changes, *changes):
    settings.update_from_flattened_dict(dict(change))
  stage = arm.start or next(reversed(study.regimes[regime].stages), None)
  return Job(
    path=f"{regime}/{path}",
    settings=settings.copy_and_resolve_references(),
    start=stage and f"policies/{stage}",
    prepare=arm.prepare,
    **more,
  )
