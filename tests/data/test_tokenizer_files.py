"""What the files beside a tokenizer say of it, held against its vocabulary."""

import json

import pytest

from bilevel_jax import errors
from bilevel_jax.data import tokenizer, tokenizer_files

UNKNOWN = len(tokenizer_files.CHARACTERS) + 2  # <pad> and <eos> are the first


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("eos", [UNKNOWN, [1, UNKNOWN], -1, 2**31, [1, 151645]])
def test_an_eos_that_no_token_is_is_refused(tmp_path, name, eos):
  tokenizer_files.character_tokenizer(tmp_path)
  (tmp_path / name).write_text(json.dumps({"eos_token_id": eos}))
  value = eos[-1] if isinstance(eos, list) else eos
  rule = rf"{name} must be the id of a token of the tokenizer, got {value}$"
  with pytest.raises(errors.ConfigError, match=rule):
    tokenizer.from_source(tmp_path)


@pytest.mark.parametrize("eos", [None, 1, [1, 5], []])
def test_config_json_may_name_an_eos_and_adds_none(tmp_path, eos):
  tokenizer_files.character_tokenizer(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": eos}))
  assert tokenizer.from_source(tmp_path).eos_ids == (1,)
