"""What a request must be like, before anything is computed for it."""

import numpy as np

from bilevel_jax import errors, types
from bilevel_jax.rollout import endings, sampling


def sizes(**given) -> None:
  """Returns nothing; refuses a size below 1, an array's least one.

  Raises:
    ConfigError: naming the first that is too small.
  """
  for name, value in given.items():
    if np.min(value, initial=1) < 1:
      raise errors.ConfigError(
        f"{name} must be at least 1, got {np.min(value)}"
      )


def checked(
  policy: types.Policy,
  requests: types.Requests,
  decode: endings.Decode | None,
) -> sampling.Rules:
  """Returns the sampling rules of each prompt of requests that can be met.

  Args:
    decode: tokens -> text; needed for stop strings.

  Raises:
    ConfigError: what cannot be met, with the value and the rule.
  """
  sizes(
    max_new_tokens=requests.max_new_tokens,
    samples_per_prompt=requests.samples_per_prompt,
  )
  prompts = len(requests.prompts)
  if np.shape(requests.max_new_tokens) not in ((), (prompts,)):
    raise errors.ConfigError(
      "max_new_tokens must be a number or have one for each of the "
      f"{prompts} prompts, got shape {np.shape(requests.max_new_tokens)}"
    )
  total = prompts * requests.samples_per_prompt
  if requests.total_tokens is not None and requests.total_tokens < total:
    raise errors.ConfigError(
      f"total_tokens must be at least 1 for each of the {total} completions, "
      f"got {requests.total_tokens}"
    )
  if "" in requests.stop:
    raise errors.ConfigError("a string of stop must not be empty")
  if requests.stop and decode is None:
    raise errors.ConfigError("stop strings need decode, got None")
  if np.shape(requests.prompt_ids) != (prompts,):
    raise errors.ConfigError(
      f"prompt_ids must name each of the {prompts} prompts, "
      f"got shape {np.shape(requests.prompt_ids)}"
    )
  _inside(policy, "eos_ids", np.asarray(requests.eos_ids))
  prefixes = requests.prefixes or ()
  if requests.prefixes is not None and len(prefixes) != total:
    raise errors.ConfigError(
      f"prefixes must have one for each of the {total} completions, got "
      f"{len(prefixes)}"
    )
  for i, prefix in enumerate(prefixes):
    _inside(policy, f"prefix {i}", prefix)
  for i, prompt in enumerate(map(np.asarray, requests.prompts)):
    if prompt.size == 0:
      raise errors.ConfigError(
        f"prompt {i} is empty: it needs a token to start from"
      )
    _inside(policy, f"prompt {i}", prompt)
    needed = prompt.size + int(requests.budgets[i])
    if policy.max_positions is not None and needed > policy.max_positions:
      raise errors.ConfigError(
        f"prompt {i} has {prompt.size} tokens and needs {needed} positions "
        f"with its new ones, but the model has {policy.max_positions}"
      )
  return sampling.rules(requests.sampling, prompts)


def _inside(policy: types.Policy, name: str, tokens: np.ndarray) -> None:
  tokens = np.asarray(tokens)
  outside = tokens[(tokens < 0) | (tokens >= policy.vocab_size)]
  if outside.size:
    raise errors.ConfigError(
      f"{name} holds token {outside[0]}, which is outside the vocabulary of "
      f"{policy.vocab_size}"
    )
