"""A contestant of benchmarks/rollout.py that only pretends, in no time."""

import os

from benchmarks.peers import lines


def set_up(request):
  print("what a peer's packages print is no answer")
  ours = "layers" in request["options"]

  def run(request):
    if os.environ.get("FAKE") == "fails" and not ours:
      raise RuntimeError("no memory left")
    lengths = request["lengths"] or [3] * len(request["prompts"])
    if os.environ.get("FAKE") == "short" and not ours:
      lengths = [length - 1 for length in lengths]
    print("nor is this")
    return {
      # The first run, of seed 0, takes longer: it would spoil the medians.
      "seconds": 1.0
      if ours
      else {0: 99.0, 1: 3.0, 2: 9.0, 3: 4.0}[request["seed"]],
      "slots": 2 * sum(lengths),
      "lengths": lengths,
      "tokens": [[1 + ours * (n == 0)] * k for n, k in enumerate(lengths)],
      "cache_bytes": 1 << 20,
      "compilations": 7 if request["seed"] == 0 else 0,
    }

  return run, {"name": "fake", "device": "NVIDIA H200", "parameters": 5}


if __name__ == "__main__":
  lines.serve(set_up)
