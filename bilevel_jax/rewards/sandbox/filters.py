"""What the kernel refuses a program: system calls, and files by Landlock.

Called in the process that is to be limited; needs no right of any kind. The
numbers are those of linux/unistd.h, seccomp.h, filter.h and landlock.h.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable

LIBC = ctypes.CDLL(None, use_errno=True)

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# name: its number on x86_64, on aarch64 (0: there is none). With them a program
# could start processes and reach others, connect, hold memory that its limit
# does not count, change files that Landlock lets be changed, or ask parts of
# the kernel that no program of a benchmark needs.
_REFUSED = {
  "fork": (57, 0),
  "vfork": (58, 0),
  "execve": (59, 221),
  "execveat": (322, 281),
  "ptrace": (101, 117),
  "process_vm_readv": (310, 270),
  "process_vm_writev": (311, 271),
  "kcmp": (312, 272),
  "pidfd_send_signal": (424, 424),
  "pidfd_open": (434, 434),
  "pidfd_getfd": (438, 438),
  "process_madvise": (440, 440),
  "process_mrelease": (448, 448),
  "tkill": (200, 130),
  "rt_sigqueueinfo": (129, 138),
  "rt_tgsigqueueinfo": (297, 240),
  "socket": (41, 198),
  "io_uring_setup": (425, 425),
  "bpf": (321, 280),
  "perf_event_open": (298, 241),
  "userfaultfd": (323, 282),
  "mount": (165, 40),
  "umount2": (166, 39),
  "pivot_root": (155, 41),
  "chroot": (161, 51),
  "unshare": (272, 97),
  "setns": (308, 268),
  "open_tree": (428, 428),
  "move_mount": (429, 429),
  "fsopen": (430, 430),
  "fsconfig": (431, 431),
  "fsmount": (432, 432),
  "fspick": (433, 433),
  "mount_setattr": (442, 442),
  "add_key": (248, 217),
  "request_key": (249, 218),
  "keyctl": (250, 219),
  "name_to_handle_at": (303, 264),
  "open_by_handle_at": (304, 265),
  "memfd_create": (319, 279),
  "memfd_secret": (447, 447),
  "shmget": (29, 194),
  "shmctl": (31, 195),
  "shmat": (30, 196),
  "semget": (64, 190),
  "msgget": (68, 186),
  "mq_open": (240, 180),
  "kexec_load": (246, 104),
  "init_module": (175, 105),
  "finit_module": (313, 273),
  "syslog": (103, 116),
  "personality": (135, 92),
  "setpriority": (141, 140),
  "sched_setparam": (142, 118),
  "sched_setscheduler": (144, 119),
  "sched_setaffinity": (203, 122),
  "sched_setattr": (314, 274),
  "ioprio_set": (251, 30),
  "migrate_pages": (256, 238),
  "move_pages": (279, 239),
  "inotify_add_watch": (254, 27),
  "fanotify_init": (300, 262),
  "truncate": (76, 45),
  "chmod": (90, 0),
  "fchmod": (91, 52),
  "fchmodat": (268, 53),
  "fchmodat2": (452, 452),
  "chown": (92, 0),
  "fchown": (93, 55),
  "lchown": (94, 0),
  "fchownat": (260, 54),
  "utime": (132, 0),
  "utimes": (235, 0),
  "futimesat": (261, 0),
  "utimensat": (280, 88),
  "setxattr": (188, 5),
  "lsetxattr": (189, 6),
  "fsetxattr": (190, 7),
  "removexattr": (197, 14),
  "lremovexattr": (198, 15),
  "fremovexattr": (199, 16),
}
# Allowed where the first argument is this process (or 0: prlimit64's own).
_OF_ITSELF = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_CLONE_THREAD = 0x10000
_X32 = 0x40000000  # system calls of x86_64's other convention

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in seccomp_data
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000

_NO_NEW_PRIVILEGES, _SECCOMP = 38, 22  # of prctl
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446


def checked(result: int, what: str) -> int:
  """Returns what a function of C gave.

  Raises:
    OSError: it is below 0: the function failed.
  """
  if result < 0:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
  return result


def system_calls_known() -> bool:
  """Returns whether the numbers of this machine's system calls are known."""
  return platform.machine() in _ARCHITECTURES


def refuse_system_calls() -> None:
  """Has the kernel refuse this process what a program must not ask for.

  Raises:
    OSError: the kernel has no such filters.
  """
  machine = platform.machine()
  column = list(_ARCHITECTURES).index(machine)
  refuse = (_RETURN, 0, 0, _FAIL | errno.EPERM)
  allow = (_RETURN, 0, 0, _ALLOW)
  code = [
    (_LOAD, 0, 0, _ARCHITECTURE),
    (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
    (_RETURN, 0, 0, _KILL),
    (_LOAD, 0, 0, _NUMBER),
    (_AT_LEAST, 0, 1, _X32),
    refuse,
  ]
  for numbers in _REFUSED.values():
    if numbers[column]:
      code += [(_EQUAL, 0, 1, numbers[column]), refuse]
  # The C library then asks for clone, whose flags a filter can read.
  unknown = (_RETURN, 0, 0, _FAIL | errno.ENOSYS)
  code += [(_EQUAL, 0, 1, _CLONE3[column]), unknown]
  argument = (_LOAD, 0, 0, _FIRST_ARGUMENT)
  code += [(_EQUAL, 0, 4, _CLONE[column]), argument]
  code += [(_ANY_BIT, 0, 1, _CLONE_THREAD), allow, refuse]
  for name, numbers in _OF_ITSELF.items():
    other = 0 if name == "prlimit64" else os.getpid()
    code += [(_EQUAL, 0, 5, numbers[column]), argument]
    code += [(_EQUAL, 1, 0, os.getpid()), (_EQUAL, 0, 1, other), allow, refuse]
  code.append(allow)
  packed = b"".join(struct.pack("=HBBI", *line) for line in code)
  filters = ctypes.create_string_buffer(packed, len(packed))

  class Program(ctypes.Structure):  # struct sock_fprog
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

  program = Program(len(code), ctypes.addressof(filters))
  _refuse_new_privileges()
  checked(
    LIBC.prctl(_SECCOMP, 2, ctypes.byref(program), 0, 0),
    "prctl(PR_SET_SECCOMP)",
  )


def _refuse_new_privileges() -> None:
  checked(LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl(NO_NEW_PRIVS)")


def rules_of_files(readable: Iterable[str], devices: Iterable[str]) -> int:
  """Returns a descriptor of Landlock's rules: nothing but these files.

  Args:
    readable: directories whose files may be read.
    devices: files that may be read and written.

  Raises:
    OSError: the kernel has no Landlock.
  """
  version = checked(
    LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1), "Landlock"
  )
  kinds = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)  # of access to files
  handled = struct.pack("=Q", 2**kinds - 1)
  rules = checked(
    LIBC.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0),
    "landlock_create_ruleset",
  )
  execute, write, read, list_ = (1 << bit for bit in range(4))
  for paths, access in (
    (readable, execute | read | list_),
    (devices, read | write),
  ):
    for path in paths:
      if not os.path.exists(path):
        continue
      file = os.open(path, os.O_PATH | os.O_CLOEXEC)
      rule = struct.pack("=Qi", access, file)
      checked(LIBC.syscall(_ADD_RULE, rules, 1, rule, 0), f"Landlock: {path}")
      os.close(file)
  return rules


def keep_to_files(rules: int) -> None:
  """Has Landlock keep this process to the rules of `rules_of_files`."""
  _refuse_new_privileges()
  checked(LIBC.syscall(_RESTRICT_SELF, rules, 0), "landlock_restrict_self")
