"""Tokens and losses of every form of row, against transformers and TRL.

The templates are those of the package trl (Apache-2.0), as public models have
them, and three short ones. TRL's own preprocessing runs, on a list in place of
a datasets.Dataset.
"""

import copy
import functools
import pathlib
import re
import types

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from bilevel_jax.data import columns, rows, tokenizer

trl = pytest.importorskip("trl", reason="the extra `parity` is not installed")
transformers = pytest.importorskip("transformers")

CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
LLAMA = (
  "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>",
  "<|end_header_id|>", "<|eom_id|>", "<|end_of_text|>",
)  # fmt: skip
GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
PHI = ("<s>", "<|endoftext|>", "<|end|>", "<|system|>", "<|user|>",
       "<|assistant|>")  # fmt: skip
COHERE = (
  "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>",
  "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
)  # fmt: skip
DEEPSEEK = (
  "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
  "<\uff5cend\u2581of\u2581sentence\uff5c>",
  "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>",
)  # fmt: skip
# Family: its special tokens with the one that begins a text and its EOS first;
# and a template where it is not one of the package's.
FAMILIES = {
  "llama3": LLAMA,
  "llama3_1": LLAMA,
  "llama3_2": LLAMA,
  "qwen2_5": (None, CHATML[1], CHATML[0], CHATML[2]),
  "qwen3": (None, CHATML[1], CHATML[0], CHATML[2]),
  "qwen3_instruct_2507": (None, CHATML[1], CHATML[0], CHATML[2]),
  "gemma": GEMMA,
  "gemma3": GEMMA,
  "phi3": PHI,
  "phi3_5": PHI,
  "cohere": COHERE,
  "lfm2": ("<|startoftext|>", "<|im_end|>", "<|im_start|>"),
  "deepseek_r1_distill": DEEPSEEK,
  "smollm2": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
  "mistral": ("<s>", "</s>", "[INST]", "[/INST]"),
  "olmo": (None, "<|endoftext|>"),
}
TEMPLATES = {
  "smollm2": (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != "
    "'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named "
    "SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
  ),
  "mistral": (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == "
    "'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
  ),
  "olmo": (
    "{{ eos_token }}{% for message in messages %}{% if message['role'] == "
    "'user' %}{{ '<|user|>\n' + message['content'] }}{% elif message['role'] "
    "== 'assistant' %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% endif %}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
  ),
}
TEXT = "What is 17 + 25? So the sum is 42, is it?\n\nYes: 40 + 2 = 42. " * 9
ASKED = {"role": "user", "content": "What is 17 + 25?"}
SAID = {"role": "assistant", "content": "The sum is 42.\n\nSo 42."}
AGAIN = {"role": "user", "content": "And 40 + 2?"}
SAID_AGAIN = {"role": "assistant", "content": "42, is it?"}


@functools.cache
def _backend(specials):
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.train_from_iterator(
    [TEXT],
    trainers.BpeTrainer(
      vocab_size=400,
      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
      special_tokens=[token for token in specials if token],
      show_progress=False,
    ),
  )
  return backend


def _template(name):
  if name in TEMPLATES:
    return TEMPLATES[name]
  folder = pathlib.Path(trl.__file__).parent / "chat_templates"
  return (folder / f"{name}.jinja").read_text()


def _both(directory, family, template):
  """Ours and transformers' tokenizer of a family with a template."""
  bos, eos, *others = FAMILIES[family]
  theirs = transformers.PreTrainedTokenizerFast(
    tokenizer_object=_backend((bos, eos, *others)),
    bos_token=bos,
    eos_token=eos,
    chat_template=template,
  )
  theirs.save_pretrained(directory)
  return tokenizer.from_source(directory, prompt="{question}"), theirs


class _Rows(list):
  """As much of a datasets.Dataset as TRL asks for."""

  column_names = property(lambda self: list(self[0]))

  def map(self, change, fn_kwargs=None, remove_columns=(), **_):
    if isinstance(remove_columns, str):
      remove_columns = [remove_columns]
    changed = [
      {**row, **change(copy.deepcopy(row), **(fn_kwargs or {}))} for row in self
    ]
    drop = set(remove_columns or ())
    return _Rows({k: v for k, v in r.items() if k not in drop} for r in changed)

  def filter(self, keep, **_):
    return _Rows(filter(keep, self))


def _by_trl(theirs, row, assistant_only):
  """TRL's token ids, and whether each has a loss."""
  trainer = types.SimpleNamespace(
    completion_only_loss="prompt" in row,
    chat_template=theirs.chat_template,
    _tokenizer=theirs,
  )
  args = types.SimpleNamespace(
    dataset_num_proc=None,
    dataset_text_field="text",
    assistant_only_loss=assistant_only,
    max_length=None,
    shuffle_dataset=False,
  )
  (made,) = trl.SFTTrainer._prepare_dataset(
    trainer, _Rows([row]), theirs, args, False, None, "train"
  )
  return made["input_ids"], [label != -100 for label in made["labels"]]


def _by_us(ours, row):
  """The ids and losses of each demonstration that a row makes."""
  question = rows.question(columns.Row("row", row), {})
  found = []
  for one in ours.demonstrations(question):
    ids = [*one.prompt.tolist(), *one.solution.tolist()]
    has_loss = [False] * len(one.prompt) + [True] * len(one.solution)
    if one.token_weights is not None:
      has_loss = [bool(weight) for weight in one.token_weights]
    found.append((ids, has_loss))
  return found


def _check_rest(theirs, rest):
  """What TRL has after the last end is blank, or an end once more."""
  text = theirs.decode(rest)
  assert text.strip() in ("", theirs.eos_token), text


PAIR = {"prompt": [ASKED], "completion": [SAID]}
# Row, and what TRL reads in its place.
ROWS = {
  "question": (
    {"question": ASKED["content"], "solution": SAID["content"]}, PAIR,
  ),
  "text": (
    {"prompt": "Q: 17 + 25?\nA:", "completion": " 42, is it?"},
    {"prompt": "Q: 17 + 25?\nA:", "completion": " 42, is it?"},
  ),
  "prompt": (PAIR, PAIR),
  "history": (
    {"prompt": [ASKED, SAID, AGAIN], "completion": [SAID_AGAIN]},
    {"prompt": [ASKED, SAID, AGAIN], "completion": [SAID_AGAIN]},
  ),
  "alpaca": (
    {
      "instruction": "What is", "input": "17 + 25?", "output": "42.",
    },
    {
      "prompt": [{"role": "user", "content": "What is\n17 + 25?"}],
      "completion": [{"role": "assistant", "content": "42."}],
    },
  ),
  "chosen": (
    {"prompt": [ASKED], "chosen": [SAID], "rejected": [SAID_AGAIN]}, PAIR,
  ),
}  # fmt: skip
# Without an answer to its question, a prompt of theirs says "<think>\n", or a
# rendered answer has thoughts that no one wrote: TRL trains on a context that
# no policy sees.
THINKING = ("deepseek_r1_distill",)


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in THINKING])
def test_pairs_are_as_trl_has_them(tmp_path, family, form):
  ours, theirs = _both(tmp_path, family, _template(family))
  row, told = ROWS[form]
  ((ids, has_loss),) = _by_us(ours, row)
  expected, expected_loss = _by_trl(theirs, told, assistant_only=False)
  assert ids == expected[: len(ids)]
  assert has_loss == expected_loss[: len(ids)]
  _check_rest(theirs, expected[len(ids) :])
  prompt = rows.question(columns.Row("row", row), {})
  if isinstance(told["prompt"], list):
    wanted = theirs.apply_chat_template(
      told["prompt"], add_generation_prompt=True, return_dict=False
    )
    assert ours.prompt_tokens(prompt).tolist() == wanted


SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [ASKED, SAID, AGAIN, SAID_AGAIN]
DIALOGUES = {
  "messages": ({"messages": TURNS}, TURNS),
  "system": ({"messages": [SYSTEM, *TURNS]}, [SYSTEM, *TURNS]),
  "column": ({"messages": TURNS, "system": "Be brief."}, [SYSTEM, *TURNS]),
  "sharegpt": (
    {
      "conversations": [
        {"from": "human", "value": ASKED["content"]},
        {"from": "gpt", "value": SAID["content"]},
        {"from": "human", "value": AGAIN["content"]},
        {"from": "gpt", "value": SAID_AGAIN["content"]},
      ]
    },
    TURNS,
  ),
  "parts": (
    {
      "messages": [
        {"role": t["role"], "content": [{"type": "text", "text": t["content"]}]}
        for t in TURNS
      ]
    },
    TURNS,
  ),
}
NO_SYSTEM = ("gemma", "mistral", "olmo")
# Where TRL marks what the assistant writes.
MARKED = (
  "llama3", "qwen2_5", "qwen3", "qwen3_instruct_2507", "gemma", "gemma3",
  "phi3", "phi3_5", "cohere", "lfm2",
)  # fmt: skip


@pytest.mark.parametrize("form", DIALOGUES)
@pytest.mark.parametrize("family", MARKED)
def test_dialogues_have_the_losses_of_trls_templates(tmp_path, family, form):
  """Where the template says what is written, and where its prefixes do."""
  row, messages = DIALOGUES[form]
  if family in NO_SYSTEM and messages[0] is SYSTEM:
    pytest.skip("the template takes no system message")
  marked = _template(f"{family}_training")
  ours, theirs = _both(tmp_path / "marked", family, marked)
  expected, expected_loss = _by_trl(
    theirs, {"messages": messages}, assistant_only=True
  )
  ((ids, has_loss),) = _by_us(ours, row)
  assert ids == expected[: len(ids)]
  assert has_loss == expected_loss[: len(ids)]
  _check_rest(theirs, expected[len(ids) :])
  # Without the marks: the same but for blanks that precede an answer or follow
  # its end, which the policy never writes.
  bare = re.sub(r"\{%(-?) generation (-?)%\}", r"{%\1 if true \2%}", marked)
  bare = re.sub(r"\{%(-?) endgeneration (-?)%\}", r"{%\1 endif \2%}", bare)
  ours, _ = _both(tmp_path / "bare", family, bare)
  ((ids, has_loss),) = _by_us(ours, row)
  assert ids == expected[: len(ids)]
  for number, mine, trls in zip(ids, has_loss, expected_loss, strict=False):
    assert mine == trls or (trls and not theirs.decode([number]).strip())


@pytest.mark.parametrize("form", DIALOGUES)
@pytest.mark.parametrize("family", FAMILIES)
def test_dialogues_are_as_transformers_renders_them(tmp_path, family, form):
  """All of one, or each turn after the prompt that precedes it."""
  row, messages = DIALOGUES[form]
  if family in NO_SYSTEM and messages[0] is SYSTEM:
    pytest.skip("the template takes no system message")
  ours, theirs = _both(tmp_path, family, _template(family))
  found = _by_us(ours, row)
  rendered = functools.partial(theirs.apply_chat_template, return_dict=False)
  ends = [len(messages)]
  if len(found) > 1:
    ends = [i + 1 for i, t in enumerate(messages) if t["role"] == "assistant"]
  for (ids, has_loss), end in zip(found, ends, strict=True):
    whole = rendered(messages[:end])
    first = rendered(messages[: end - 1], add_generation_prompt=True)
    if family in THINKING:
      assert ids[: len(first)] == first
      assert not any(has_loss[: len(first)])
    else:
      assert ids == whole[: len(ids)]
      _check_rest(theirs, whole[len(ids) :])
    texts = [t["content"] for t in messages[:end] if t["role"] == "assistant"]
    said = "".join(i for i in _spans(theirs, ids, has_loss))
    assert all(text in said for text in texts[-1 if len(found) > 1 else 0 :])
    assert all(
      t["content"] not in said for t in messages[:end] if t["role"] == "user"
    )


def _spans(theirs, ids, has_loss):
  for number, counted in zip(ids, has_loss, strict=True):
    yield theirs.decode([number]) if counted else "\0"


TOOL = {
  "type": "function",
  "function": {
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
  },
}
CALL = {
  "role": "assistant",
  "content": "",
  "tool_calls": [
    {"type": "function", "function": {"name": "add", "arguments": {"a": 17}}}
  ],
}
RESULT = {"role": "tool", "name": "add", "content": "42"}


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "llama3_1"])
@pytest.mark.parametrize("thinking", [None, False])
def test_tools_and_variables_reach_the_template(tmp_path, family, thinking):
  ours, theirs = _both(tmp_path, family, _template(family))
  variables = {} if thinking is None else {"enable_thinking": thinking}
  messages = [ASKED, CALL, RESULT, SAID]
  row = {"messages": messages, "tools": [TOOL]}
  row["chat_template_kwargs"] = variables
  rendered = functools.partial(
    theirs.apply_chat_template, tools=[TOOL], return_dict=False, **variables
  )
  question = rows.question(columns.Row("row", row), {})
  assert ours.prompt_tokens(question).tolist() == rendered(
    messages[:-1], add_generation_prompt=True
  )
  found = _by_us(ours, row)
  ends = [4] if len(found) == 1 else [2, 4]
  for (ids, has_loss), end in zip(found, ends, strict=True):
    whole = rendered(messages[:end])
    assert ids == whole[: len(ids)]
    said = "".join(_spans(theirs, ids, has_loss))
    assert ("add" in said) == (end == 2 or len(found) == 1)
    assert "Adds." not in said


def test_a_turns_weight_and_a_prompts_turns(tmp_path):
  ours, theirs = _both(tmp_path, "llama3", _template("llama3"))
  turns = [ASKED, {**SAID, "weight": 0}, AGAIN, {**SAID_AGAIN, "weight": 0.5}]
  question = rows.question(columns.Row("row", {"messages": turns}), {})
  (one,) = ours.demonstrations(question)
  assert one.token_weights is not None
  n = len(one.prompt)
  assert not one.token_weights[:n].any()
  assert (one.token_weights[n:] == 0.5).all()
  assert theirs.decode(one.solution) == SAID_AGAIN["content"] + "<|eot_id|>"
