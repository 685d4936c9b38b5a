"""What is raised for what a user gave, and what a disk that fails raises."""

import errno

OF_DISKS = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
  *(errno.EROFS, errno.ESTALE, errno.EIO),
)
"""Numbers of the OSErrors of a disk that is full, read-only or broken."""


class ConfigError(ValueError):
  """Something that the user gave cannot be used; the message says the rule."""
