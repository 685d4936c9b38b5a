"""What the site makes of the pages: `docs/page.md` in them is a link."""

import os
import re
from typing import Any

_PAGE = re.compile(r"(?<!\[)`docs/([\w/]+\.md)`(?!\])")


def on_page_markdown(markdown: str, page: Any, **unused: Any) -> str:
  """Returns the page with a link for each other page that it names."""
  here = os.path.dirname(page.file.src_uri)
  link = lambda found: f"[{found[0]}]({os.path.relpath(found[1], here or '.')})"
  return _PAGE.sub(link, markdown)
