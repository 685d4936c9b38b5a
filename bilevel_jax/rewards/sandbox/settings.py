"""What a program that is a completion may do, and what it costs at most."""

import dataclasses
from typing import Literal

from bilevel_jax.fields import setting


@dataclasses.dataclass(frozen=True)
class Sandbox:
  """Settings of the verifier `code`."""

  isolation: Literal["auto", "namespaces", "landlock", "none"] = setting(
    "auto",
    "what keeps programs from files and processes: namespaces of their own, "
    "Landlock (where the kernel refuses namespaces), or none; auto: the first "
    "of the two that the kernel allows, and no run where it allows neither",
  )
  deadline_s: float = setting(
    4.0,
    "seconds that all tests of a program may take together, by the clock",
    above=0,
  )
  test_s: float = setting(
    2.0, "seconds that one test may take, by the clock", above=0
  )
  cpu_s: int = setting(
    4, "seconds of CPU time that a process of a program may take", at_least=1
  )
  memory: str = setting(
    "1GB",
    "address space of a program: a number with MB, GB, MiB or GiB",
  )
  output: str = setting(
    "16MB",
    "longest output of a program, and largest file that it may write: a number "
    "with MB, GB, MiB or GiB",
  )
  packages: tuple[str, ...] = setting(
    (),
    "packages besides the standard library that programs may import, such as "
    "numpy; they are imported once, before the first program",
  )
  score: Literal["all", "share"] = setting(
    "all",
    "reward of a program: 1 if it passes all its tests, or the share of tests "
    "that it passes",
  )
