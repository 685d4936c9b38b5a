"""Betty as a contestant of benchmarks/hypergradient_peers.py."""

import logging

import torch
from betty import configs, engine, problems

from benchmarks.peers.bilevel import torch_side

_TYPES = {"one_step": "darts", "neumann": "neumann", "conjugate gradient": "cg"}


class Session(torch_side.Session):
  """An Engine whose leaf is the lower level."""

  def __init__(self, request, arrays):
    super().__init__(request, arrays)
    outside = self

    class Lower(problems.ImplicitProblem):
      def training_step(self, batch):
        w = self.upper_level.module.value
        return outside.lower(self.module.value, w, outside.data)

      def get_batch(self):
        return ()

    class Upper(problems.ImplicitProblem):
      def training_step(self, batch):
        b = self.lower_level.module.value
        return outside.upper(b, self.module.value, outside.data)

      def get_batch(self):
        return ()

      def grad_callback(self):
        outside.gradient = self.module.value.grad.mul_(scale).clone()

    # It leaves out the step, whose length Adam's epsilon would see.
    scale = self.step if request["estimator"] == "one_step" else 1.0
    steps = request["inner_steps"]
    b, w = torch_side.Module(self.start), torch_side.Module(self.w.detach())
    lower = Lower(
      "lower_level",
      configs.Config(
        type=_TYPES[request["estimator"]],
        unroll_steps=steps,
        neumann_iterations=request["iterations"],
        neumann_alpha=self.step,
        cg_iterations=request["iterations"],
      ),
      b,
      torch.optim.SGD(b.parameters(), lr=self.step),
    )
    ridge = request["problem"] == "ridge"
    upper = Upper(
      "upper_level",
      configs.Config(),
      w,
      # Ridge asks for the gradient at one w alone.
      torch.optim.SGD(w.parameters(), lr=0.0)
      if ridge
      else torch.optim.Adam(w.parameters(), lr=request["rate"]),
    )
    logging.disable(logging.INFO)
    self.engine = engine.Engine(
      [lower, upper],
      configs.EngineConfig(
        train_iters=steps * (1 if ridge else request["outer_steps"]),
        valid_step=10**9,
        strategy="cpu",
      ),
      {"l2u": {lower: [upper]}, "u2l": {upper: [lower]}},
    )
    self.b, self.w = b.value, w.value

  def restart(self):
    with torch.no_grad():
      self.b.copy_(self.start)

  def found(self):
    return self.b

  def hypergradient(self, w):
    self.engine.run()
    return self.gradient

  def outer(self, count):
    self.engine.run()


if __name__ == "__main__":
  torch_side.serve("betty-ml", Session)
