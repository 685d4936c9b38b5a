"""TorchOpt as a contestant of benchmarks/hypergradient_peers.py."""

import torch
import torchopt

from benchmarks.peers.bilevel import torch_side


class Session(torch_side.Session):
  """MetaSGD for the unroll, custom_root for implicit differentiation."""

  def __init__(self, request, arrays):
    super().__init__(request, arrays)
    self.restart()
    linear_solve = torchopt.linear_solve
    if request["estimator"] == "neumann":
      solve = linear_solve.solve_inv(
        ns=True, maxiter=request["iterations"], alpha=self.step
      )
    else:
      solve = linear_solve.solve_cg(
        maxiter=request["iterations"], rtol=0.0, atol=0.0
      )
    gradient = torch.func.grad(lambda b, w: self.lower(b, w, self.data))
    self.solution = torchopt.diff.implicit.custom_root(
      gradient, argnums=1, solve=solve
    )(self._descend)

  def restart(self):
    self.module = torch_side.Module(self.start)
    self.b = self.start

  def found(self):
    return self.b

  def hypergradient(self, w):
    find = (
      self._unroll if self.request["estimator"] == "unrolled" else self.solution
    )
    b = find(self.b, w)
    (gradient,) = torch.autograd.grad(self.upper(b, w, self.data), w)
    self.b = b.detach()
    return gradient

  def _unroll(self, b, w):
    del b  # the module has it
    torchopt.stop_gradient(self.module)
    optimizer = torchopt.MetaSGD(self.module, lr=self.step)
    for _ in range(self.request["inner_steps"]):
      optimizer.step(self.lower(self.module.value, w, self.data))
    return self.module.value

  def _descend(self, b, w):
    module, w = torch_side.Module(b), w.detach()
    sgd = torch.optim.SGD(module.parameters(), lr=self.step)
    with torch.enable_grad():
      for _ in range(self.request["inner_steps"]):
        sgd.zero_grad()
        self.lower(module.value, w, self.data).backward()
        sgd.step()
    return module.value.detach()


if __name__ == "__main__":
  torch_side.serve("torchopt", Session)
