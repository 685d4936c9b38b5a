"""Settings: a schema of frozen dataclasses, the only home of defaults.

`default_config()` renders the schema as a locked `ConfigDict`, a file in
`configs/` changes a few fields, and `parse()` freezes the result, reporting
every broken rule at once.
"""

from bilevel_jax.config.files import from_file as from_file
from bilevel_jax.config.parsing import check_name as check_name
from bilevel_jax.config.parsing import default_config as default_config
from bilevel_jax.config.parsing import defaults as defaults
from bilevel_jax.config.parsing import flat as flat
from bilevel_jax.config.parsing import kind_of as kind_of
from bilevel_jax.config.parsing import parse as parse
from bilevel_jax.config.parsing import suggestion as suggestion
from bilevel_jax.config.parsing import to_dict as to_dict
from bilevel_jax.config.schema import *  # noqa: F403 -- the schema is the API
