"""One word for one thing: those that another word replaced stay away."""

import pathlib
import re

_ROOT = pathlib.Path(__file__).parents[1]
# What is no longer said, and the word for it.
_REPLACED = {
  r"(?<![a-z])(un)?tell(s|ing)?(?![a-z])": "has_signal, groups_with_signal",
  r"(?<![a-z])stor(y|ies)(?![a-z])": "run",
  r"(?<![a-z])lead(?![a-z])": "sft_prefix",
  r"enlist": "load_expert",
  r"(?<![a-z])(trunk|bunch(es)?)(?![a-z])": "shared prefix, prefix group",
  r"(?<![a-z])branch(es)?(?![a-z])(?!, tag)(?! on the hub)": "continuation",
  r"(?<![a-z])begun(?![a-z])": "prefixed",
  r"(?<!with)drawn(?![a-z])": "sampled, plotted",
  r"(?<![a-z])wording(?![a-z])": "prompt_format",
  r"Layout|\.layout\b|\blayout\b(?!=\")": "PackedRows, RowSharding",
  r"(?<![a-z])(house|chapters?)(?![a-z])": "package, module, part",
  r"(?<![a-z])rooms?(?![a-z])": "space; a part of the package",
}


def test_replaced_words_stay_away():
  files = [
    path
    for folder in ("bilevel_jax", "configs", "experiments", "docs", "tools")
    for path in (_ROOT / folder).rglob("*.[pm][yd]")
    if path.name != "changelog.md"
  ] + [_ROOT / "README.md"]
  assert len(files) > 150
  found = [
    f"{path.relative_to(_ROOT)}:{number}: {match[0]!r} is {word!r} here"
    for path in files
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
    for old, word in _REPLACED.items()
    for match in re.finditer(old, line)
  ]
  assert not found, "\n".join(found)


def test_lower_and_upper_are_what_bilevel_speaks_of():
  for path in (_ROOT / "bilevel_jax" / "bilevel").glob("*.py"):
    text = path.read_text("utf-8")
    assert not re.search(r"\b(base|adapter|rl_only\w*)\b", text), path
