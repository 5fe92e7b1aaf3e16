"""Whether a path lies on a network file system, from Linux's list of mounts.

Processes on one file of SQLite's coordinate through locks and shared memory, which a network file
system offers between machines badly or not at all. The format is in proc(5), at
/proc/pid/mountinfo::

    36 35 98:0 / /mnt/nfs rw,noatime shared:1 master:2 - nfs4 server:/export rw

The fifth field is the mount point; how many optional fields are before the hyphen varies; the file
system type comes after it.
"""

from __future__ import annotations

import os
import re

__all__ = ["MOUNTINFO", "file_system", "network_file_system"]

MOUNTINFO = "/proc/self/mountinfo"

_NETWORK = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "fuse", "gfs2", "glusterfs",
    "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "pvfs2", "smb3",
    "smbfs", "vboxsf",
    "virtiofs",  # Guests and host do not share one page cache, except with DAX, which is rare.
})  # fmt: skip

# What is mounted through FUSE says so before the dot. Neither "fuseblk", which is a local disk
# (NTFS, say), nor "fusectl", which is the kernel's switchboard, has one.
_FUSE = "fuse."

_MOUNT_POINT = 4
_FIRST_OPTIONAL = 6

# The kernel escapes a few ASCII characters, and leaves all other bytes as they are.
_ESCAPE = re.compile(r"\\([01][0-7]{2})")


def file_system(path: str, mountinfo: str) -> str | None:
    r"""Return the type of the file system that `path` lies on, None where no mount holds it.

    >>> mountinfo = r'''
    ... 22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
    ... 97 22 0:53 / /mnt/my\040share rw,relatime - nfs4 server:/export rw
    ... '''
    >>> file_system("/mnt/my share/settings.db", mountinfo)
    'nfs4'
    >>> file_system("/mnt/my shares", mountinfo)
    'ext4'

    :param path: absolute, without symlinks
    :param mountinfo: the text of `MOUNTINFO`, decoded as `os.fsdecode` does; lines that are not in
        its format are passed over

    """
    found: str | None = None
    longest = 0
    # A name may hold what `str.split` and `str.splitlines` would split at: a carriage return, a
    # no-break space. And a field may be empty: the source of a mount, for one.
    for line in mountinfo.split("\n"):
        fields = line.split(" ")
        try:
            separator = fields.index("-", _FIRST_OPTIONAL)
            mount_point, type_ = _unescaped(fields[_MOUNT_POINT]), _unescaped(fields[separator + 1])
        except (IndexError, ValueError):
            continue
        if not mount_point.startswith("/") or not type_:
            continue
        # Of two on the same mount point the later one hides the earlier, hence not `>`.
        if len(mount_point) >= longest and _holds(mount_point, path):
            found, longest = type_, len(mount_point)
    return found


def network_file_system(path: str) -> str | None:
    """Return the type of the file system that `path` lies on if it is a network one, else None.

    Those count too that give processes no reliable shared memory for another reason: everything
    behind FUSE, the folders that a virtual machine shares with its host. None is also the answer
    where the system does not tell, as on macOS.

    :param path: need not exist; symlinks are followed

    """
    # In this order: following the path is what makes the automounter mount what it leads to.
    resolved = os.path.realpath(path)
    try:
        # Bytes, because reading text would turn a carriage return in a name into a newline.
        with open(MOUNTINFO, "rb") as file:
            mountinfo = os.fsdecode(file.read())
    except OSError:
        return None
    type_ = file_system(resolved, mountinfo)
    if type_ is not None and (type_ in _NETWORK or type_.startswith(_FUSE)):
        return type_
    return None


def _unescaped(field: str) -> str:
    return _ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), field)


def _holds(mount_point: str, path: str) -> bool:
    return path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
