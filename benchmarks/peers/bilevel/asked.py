"""What benchmarks/hypergradient_peers.py asks of every contestant.

The first line of a process says {"float64": bool, "options": {"contestant":
its name}}; -> {"name", "device", "parameters"}. Every later one is an `Ask`:

  ridge: -> the hypergradient at w, from b = 0 on
  {"seconds": of one, "preparing": seconds before the first, "compilations": n,
   "gradient": [...], ...memory}

  cleaning: `outer_steps` times an update of w by Adam; b goes on where it was
  {"seconds": of one outer step, "preparing": ..., "compilations": n,
   "b": [[...]], "w": [...], ...memory}

`preparing` is a compilation on JAX, and the first tiny run (`few`) on torch;
memory (memory.py) is that of what comes after both.
"""

from typing import Any, NamedTuple


class Ask(NamedTuple):
  """One estimator on one problem."""

  name: str
  problem: str  # ridge or cleaning
  data: str  # a .npz file; {seed} stands for the seed
  estimator: str  # a key of ESTIMATORS
  inner_steps: int  # gradient steps of b for each hypergradient
  iterations: int = 0  # of the linear solver
  penalty: float = 0.0  # lambda of `penalty`
  outer_steps: int = 1
  rates: dict[str, float] = {}  # contestant -> Adam's on w  # noqa: RUF012
  seconds: float = 0.0  # ridge is repeated for this long
  memory: bool = False  # a tiny run comes before the one that is measured

  def request(self, seed: int) -> dict[str, Any]:
    """Returns the line that asks for it."""
    data = self.data.format(seed=seed)
    return {**self._asdict(), "data": data, "first": seed == 0}


def few(request: dict[str, Any]) -> dict[str, Any]:
  """Returns a tiny run of the same: it loads what a library loads lazily."""
  return {
    **request,
    "name": "few",
    "inner_steps": 2,
    "iterations": min(request["iterations"], 2),
    "outer_steps": 1,
    "seconds": 0.0,
    "memory": False,
  }


ESTIMATORS = {
  "unrolled": ("bilevel_jax", "jaxopt", "optimistix", "torchopt"),
  "conjugate gradient": (
    "bilevel_jax",
    "jaxopt",
    "optimistix",
    "torchopt",
    "betty",
  ),
  "neumann": ("bilevel_jax", "torchopt", "betty"),
  "one_step": ("bilevel_jax", "betty"),
  "penalty": ("bilevel_jax",),
  "none": ("bilevel_jax",),  # w stays
}
"""Estimator -> who has it, ours first."""

PACKAGES = {
  "jaxopt": "jaxopt",
  "optimistix": "optimistix",
  "torchopt": "torchopt",
  "betty": "betty-ml",
}
"""Peer (a module of this directory, `with_` before it, and what is imported)
-> its distribution."""
