"""Any method on multi-step arithmetic, from the quickstart's policy.

    python -m bilevel_jax.main --config configs/methods.py:chord

After the colon stands a name of docs/methods.md, or two_stage, which is what a
study calls sft_then_rl. The run is in runs/NAME. All are the same but for the
method, and as that of configs/quickstart.py, but with a worked solution for a
quarter of the questions, none of them spoiled; gta has other demonstrations:
"guess 42:" before the worked solution, and the prompt of self_teacher has no
words, which the small policy does not know.

Hardware: 2 CPU cores, no download. Expected: docs/methods.md says what to look
at for each method, and what was seen.
"""

from bilevel_jax import errors, methods
from configs import quickstart

_NAMED_OTHERWISE = {"two_stage": "sft_then_rl"}
NAMES = (*methods.METHODS, *_NAMED_OTHERWISE)


def get_config(name: str = ""):
  """Returns the settings of the run of one method.

  Raises:
    ConfigError: no method has the name.
  """
  if name not in NAMES:
    raise errors.ConfigError(
      f"--config configs/methods.py:NAME takes {', '.join(NAMES)}, got "
      f"{repr(name) if name else 'no name'}"
    )
  c = quickstart.start()
  c.run_dir = f"runs/{name}"
  c.method.name = _NAMED_OTHERWISE.get(name, name)
  if name == "gta":
    c.data.solution = "guess {answer}:{solution}"
    c.method.gta.guess_end = ":"
  if name == "self_teacher":
    c.method.self_teacher.prompt = "{solution}\n{question}"
  return c
