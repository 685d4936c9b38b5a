"""Namespaces of its own for a process: files, processes, network, users.

By system calls, as `unshare` and bubblewrap use them; the process that calls
these functions has one thread. A process without rights becomes root of a user
namespace; root needs none.
"""

import ctypes
import os
import platform
from collections.abc import Iterable

from bilevel_jax.rewards.sandbox.filters import LIBC, checked

# of linux/sched.h, mount.h, prctl.h and capability.h
_MOUNTS, _IPC, _USERS, _PROCESSES, _NETWORK = (
  0x00020000,
  0x08000000,
  0x10000000,
  0x20000000,
  0x40000000,
)
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXECUTE = 1, 2, 4, 8
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
_DETACH = 2
_AT_RECURSIVE = 0x8000
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
DIRECTORY = "/directory_of_program"
"""Where a program may write."""
_ROOT = "/root_of_programs"  # below the root of the mounts: a chroot, in which
# the kernel makes no further user namespace


def unshare() -> None:
  """Leaves the namespaces of the parent; the next child is process 1.

  Raises:
    OSError: the kernel refuses it.
  """
  flags = _MOUNTS | _IPC | _PROCESSES | _NETWORK
  user, group = os.geteuid(), os.getegid()
  if user:
    flags |= _USERS
  checked(LIBC.unshare(flags), "unshare")
  if user:
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")


def see_only(readable: Iterable[str], devices: Iterable[str]) -> None:
  """Makes a root that has these directories, read-only, and nothing else.

  There is neither /proc nor /sys, and `DIRECTORY` for `empty_directory`.

  Raises:
    OSError: the kernel refuses it.
  """
  _mount(None, "/", None, _RECURSIVE | _PRIVATE)
  # Over a directory that is everywhere and that has none of the readable.
  _mount("tmpfs", "/proc", "tmpfs", _NO_SUID | _NO_DEVICES, "size=1m")
  os.mkdir(f"/proc{_ROOT}")
  for path in sorted(readable):
    if os.path.isdir(path):
      _show(path, _READ_ONLY | _NO_SUID | _NO_DEVICES, os.path.islink(path))
  for path in devices:
    _show(path, _READ_ONLY | _NO_SUID, False)
  os.mkdir(f"/proc{_ROOT}{DIRECTORY}")
  os.chdir("/proc")
  number = _PIVOT_ROOT[platform.machine()]
  checked(LIBC.syscall(number, b".", b"."), "pivot_root")
  checked(LIBC.umount2(b".", _DETACH), "umount2")
  _set_attributes("/", _READ_ONLY, recursive=False)
  os.chroot(_ROOT)
  os.chdir("/")


def empty_directory(size: int) -> None:
  """Puts a new file system in memory at `DIRECTORY`, in place of the last one.

  Args:
    size: bytes that its files may have together.
  """
  if os.path.ismount(DIRECTORY):
    checked(LIBC.umount2(DIRECTORY.encode(), _DETACH), "umount2")
  limits = f"size={size},nr_inodes=1000,mode=1777"
  flags = _NO_SUID | _NO_DEVICES | _NO_EXECUTE
  _mount("tmpfs", DIRECTORY, "tmpfs", flags, limits)


def _show(path: str, attributes: int, is_link: bool) -> None:
  inside = f"/proc{_ROOT}{path}"
  os.makedirs(os.path.dirname(inside), exist_ok=True)
  if is_link:
    os.symlink(os.readlink(path), inside)
    return
  if os.path.isdir(path):
    os.makedirs(inside, exist_ok=True)
  else:
    open(inside, "x").close()
  _mount(path, inside, None, _BIND | _RECURSIVE)
  _set_attributes(inside, attributes, recursive=True)


def _set_attributes(path: str, attributes: int, *, recursive: bool) -> None:
  class Attributes(ctypes.Structure):  # struct mount_attr
    _fields_ = tuple(
      (name, ctypes.c_uint64)
      for name in ("set", "clear", "propagation", "users")
    )

  changed = Attributes(attributes, 0, 0, 0)
  checked(
    LIBC.syscall(
      _MOUNT_SETATTR,
      -100,
      path.encode(),
      _AT_RECURSIVE if recursive else 0,
      ctypes.byref(changed),
      ctypes.c_size_t(ctypes.sizeof(changed)),
    ),
    f"mount_setattr({path})",
  )


def _mount(
  source: str | None,
  target: str,
  kind: str | None,
  flags: int,
  options: str | None = None,
) -> None:
  texts = [text and text.encode() for text in (source, target, kind, options)]
  source_, target_, kind_, options_ = texts
  checked(
    LIBC.mount(source_, target_, kind_, ctypes.c_ulong(flags), options_),
    f"mount({target})",
  )


def _write(path: str, text: str) -> None:
  with open(path, "w") as file:
    file.write(text)


def drop_rights(user: int | None, *, reads_all: bool) -> None:
  """Gives up every capability, and the user id where another is given.

  Args:
    user: id of a user without rights, for a process of root; None: as it is.
    reads_all: whether directories that are closed to that user can be read;
      for a process that Landlock keeps to some.
  """
  if user is not None:
    os.setgroups([])
    os.setresgid(user, user, user)
    checked(LIBC.prctl(8, int(reads_all), 0, 0, 0), "prctl(PR_SET_KEEPCAPS)")
    os.setresuid(user, user, user)
  kept = 1 << 2 if user is not None and reads_all else 0  # DAC_READ_SEARCH
  header = (ctypes.c_uint32 * 2)(0x20080522, 0)
  data = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
  checked(LIBC.capset(header, data), "capset")
