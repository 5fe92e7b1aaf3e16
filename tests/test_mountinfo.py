"""Network file systems are told from local ones, on lists of mounts as real machines have them."""

from __future__ import annotations

import doctest
import os
from pathlib import Path

import pytest

from durabledict import mountinfo
from durabledict.mountinfo import file_system, network_file_system

LAPTOP = r"""
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
23 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
24 28 0:5 / /dev rw,nosuid,relatime shared:2 - devtmpfs udev rw,size=8034812k,mode=755
28 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
31 28 0:24 / /run rw,nosuid,nodev,noexec,relatime shared:5 - tmpfs tmpfs rw,mode=755
40 22 0:35 / /sys/fs/fuse/connections rw,relatime shared:18 - fusectl fusectl rw
92 28 0:49 / /home rw,relatime shared:47 - autofs /etc/auto.home rw,fd=6,pgrp=1,indirect
99 28 259:1 / /boot/efi rw,relatime shared:49 - vfat /dev/nvme0n1p1 rw,fmask=0077
310 92 0:61 / /home/ada rw,relatime shared:163 - nfs4 filer:/home/ada rw,vers=4.2,hard,proto=tcp
402 28 8:17 / /media/ada/USB rw,nosuid,nodev,relatime shared:210 - fuseblk /dev/sdb1 rw,user_id=0
417 310 0:66 / /home/ada/box rw,nosuid,nodev,relatime shared:231 - fuse.sshfs box:/srv rw,user_id=1
431 31 0:70 / /run/user/1000/doc rw,nosuid,nodev,relatime shared:240 - fuse.portal portal rw
"""

CONTAINER = r"""
1021 873 0:97 / / rw,relatime master:340 - overlay overlay rw,lowerdir=/l/X:/l/Y,upperdir=/d/diff
1022 1021 0:100 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
1023 1021 0:101 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
1027 1023 0:99 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=65536k
1028 1021 0:88 / /data rw,relatime master:355 - cifs //nas/share rw,vers=3.1.1,cache=strict
1029 1021 254:1 /docker/volumes/db/_data /var/lib/db rw,relatime master:1 - ext4 /dev/vda1 rw
1030 1021 254:1 /docker/containers/c0/hosts /etc/hosts rw,relatime - ext4 /dev/vda1 rw
"""

WSL = r"""
67 77 8:32 / / rw,relatime - ext4 /dev/sdc rw,discard,errors=remount-ro,data=ordered
85 67 0:38 / /mnt/wsl rw,relatime shared:1 - tmpfs none rw
86 67 0:41 / /usr/lib/wsl/drivers ro,nosuid,nodev,noatime - 9p none ro,dirsync,aname=drivers
154 67 0:64 / /mnt/c rw,noatime - 9p C:\134 rw,dirsync,aname=drvfs;path=C:\134;uid=1000;trans=fd
"""

NESTED = r"""
25 1 8:1 / / rw,relatime shared:1 master:2 - btrfs /dev/sda1 rw,subvol=/@
81 25 0:50 / /mnt/nfs rw,relatime shared:30 - nfs filer:/export rw,vers=3
82 81 8:3 / /mnt/nfs/local rw,relatime shared:31 - ext4 /dev/sda3 rw
83 82 0:51 / /mnt/nfs/local/far rw,relatime shared:32 propagate_from:2 - ceph 10.0.0.1:6789:/ rw
"""

ROOT = "22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n"


def mount(mount_point: str, type_: str) -> str:
    return f"90 22 0:50 / {mount_point} rw,relatime shared:9 - {type_} source rw\n"


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        (LAPTOP, "/", "ext4"),
        (LAPTOP, "/var/lib/settings.db", "ext4"),
        (LAPTOP, "/home", "autofs"),
        (LAPTOP, "/home/bob/settings.db", "autofs"),
        (LAPTOP, "/home/ada", "nfs4"),
        (LAPTOP, "/home/ada/settings.db", "nfs4"),
        (LAPTOP, "/home/adam/settings.db", "autofs"),
        (LAPTOP, "/home/ada/box/settings.db", "fuse.sshfs"),
        (LAPTOP, "/media/ada/USB/settings.db", "fuseblk"),
        (LAPTOP, "/sys/fs/fuse/connections/40", "fusectl"),
        (LAPTOP, "/boot/efi/EFI", "vfat"),
        (CONTAINER, "/app/settings.db", "overlay"),
        (CONTAINER, "/data/settings.db", "cifs"),
        (CONTAINER, "/database/settings.db", "overlay"),
        (CONTAINER, "/var/lib/db/settings.db", "ext4"),
        (CONTAINER, "/etc/hosts", "ext4"),
        (CONTAINER, "/dev/shm/settings.db", "tmpfs"),
        (WSL, "/home/ada/settings.db", "ext4"),
        (WSL, "/mnt/c/Users/ada/settings.db", "9p"),
        (WSL, "/mnt/wsl/settings.db", "tmpfs"),
        (WSL, "/mnt/d", "ext4"),
        (NESTED, "/mnt/settings.db", "btrfs"),
        (NESTED, "/mnt/nfs/settings.db", "nfs"),
        (NESTED, "/mnt/nfs2/settings.db", "btrfs"),
        (NESTED, "/mnt/nf", "btrfs"),
        (NESTED, "/mnt/nfs/local/settings.db", "ext4"),
        (NESTED, "/mnt/nfs/locally/settings.db", "nfs"),
        (NESTED, "/mnt/nfs/local/far/settings.db", "ceph"),
        (ROOT, "/", "ext4"),
        (ROOT, "/settings.db", "ext4"),
        (ROOT.removesuffix("\n"), "/settings.db", "ext4"),
    ],
)
def test_real_machines(text: str, path: str, expected: str) -> None:
    assert file_system(path, text) == expected


def test_longest_mount_point_wins_in_any_order() -> None:
    backwards = "\n".join(reversed(NESTED.splitlines()))
    assert file_system("/mnt/nfs/local/far/settings.db", backwards) == "ceph"
    assert file_system("/mnt/nfs/local/settings.db", backwards) == "ext4"
    assert file_system("/settings.db", backwards) == "btrfs"


@pytest.mark.parametrize("mount_point", ["/", "/mnt/share"])
def test_later_mount_hides_earlier(mount_point: str) -> None:
    text = mount(mount_point, "autofs") + mount(mount_point, "nfs4") + mount(mount_point, "xfs")
    assert file_system("/mnt/share/settings.db", text) == "xfs"


@pytest.mark.parametrize(
    ("escaped", "folder"),
    [
        (r"/mnt/my\040share", "/mnt/my share"),
        (r"/mnt/tab\011new\012line", "/mnt/tab\tnew\nline"),
        (r"/mnt/back\134slash", "/mnt/back\\slash"),
        (r"/mnt/two\040words\134\040more", "/mnt/two words\\ more"),
        (r"/mnt/number\043sign", "/mnt/number#sign"),
        # Decoded once: the name holds a backslash and three digits.
        (r"/mnt/\134040", r"/mnt/\040"),
        (r"/mnt/a\040-\040b", "/mnt/a - b"),
        ("/mnt/-", "/mnt/-"),
        # What Python takes for white space or the end of a line, and the kernel does not escape.
        ("/mnt/a\rb", "/mnt/a\rb"),
        ("/mnt/a\x0bb\x85c\u2028d\xa0e", "/mnt/a\x0bb\x85c\u2028d\xa0e"),
        (os.fsdecode(b"/mnt/caf\xe9"), os.fsdecode(b"/mnt/caf\xe9")),
        ("/mnt/café", "/mnt/café"),
    ],
)
def test_unusual_names(escaped: str, folder: str) -> None:
    text = ROOT + mount(escaped, "nfs4")
    assert file_system(folder, text) == "nfs4"
    assert file_system(f"{folder}/settings.db", text) == "nfs4"
    assert file_system(f"{folder}s/settings.db", text) == "ext4"


@pytest.mark.parametrize("optional", ["", "shared:1 ", "shared:1 master:2 ", "master:1 a b:3 c "])
def test_optional_fields(optional: str) -> None:
    text = f"36 35 98:0 /mnt1 /mnt rw,noatime {optional}- nfs filer:/export rw,errors=continue"
    assert file_system("/mnt/settings.db", text) == "nfs"


def test_source_may_be_empty_or_look_like_the_separator() -> None:
    assert file_system("/mnt", "90 22 0:50 / /mnt rw,relatime - nfs4  rw") == "nfs4"
    assert file_system("/mnt", "90 22 0:50 / /mnt rw,relatime - nfs4 - rw") == "nfs4"


def test_type_may_be_escaped() -> None:
    assert file_system("/mnt", mount("/mnt", r"fuse.my\040own")) == "fuse.my own"


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        " ",
        "-",
        " - ",
        "garbage",
        "- - - - / -",
        "90 22 0:50 / /mnt",
        "90 22 0:50 / /mnt rw,relatime shared:9",
        "90 22 0:50 / /mnt rw,relatime shared:9 -",
        "90 22 0:50 / /mnt rw,relatime shared:9 - ",
        "90 22 0:50 / /mnt - nfs4 source rw",
        "90 22 0:50 / mnt rw,relatime - nfs4 source rw",
        "90 22 0:50 /  rw,relatime - nfs4 source rw",
        "nfs4 filer:/export /mnt nfs4 rw 0 0",
        "\0\udcff\udcfe /mnt",
    ],
)
def test_malformed_lines_are_passed_over(garbage: str) -> None:
    assert file_system("/mnt/settings.db", f"{garbage}\n") is None
    assert file_system("/mnt/settings.db", f"{garbage}\n{ROOT}{garbage}\n") == "ext4"


def test_nothing_holds_the_path() -> None:
    assert file_system("/mnt/settings.db", "") is None
    assert file_system("/settings.db", mount("/mnt", "nfs4")) is None
    assert file_system("settings.db", NESTED) is None


NETWORK_TYPES = [
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "fuse", "fuse.sshfs", "fuse.s3fs",
    "fuse.glusterfs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "afs", "coda", "ncpfs",
    "ocfs2", "gfs2", "pvfs2", "orangefs", "vboxsf", "prl_fs", "davfs", "drvfs",
]  # fmt: skip

LOCAL_TYPES = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "aufs", "tmpfs", "ramfs",
    "vfat", "exfat", "ntfs3", "squashfs", "proc", "sysfs", "devtmpfs", "autofs", "nfsd", "fuseblk",
    "fuseblk.ntfs", "fusectl",
]  # fmt: skip


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that is read for the mounts, with the root alone in it."""
    file = tmp_path / "mountinfo"
    file.write_text(ROOT)
    monkeypatch.setattr(mountinfo, "MOUNTINFO", str(file))
    return file


@pytest.mark.parametrize("type_", NETWORK_TYPES)
def test_network(type_: str, mounts: Path, tmp_path: Path) -> None:
    mounts.write_text(ROOT + mount(str(tmp_path.resolve()), type_))
    assert network_file_system(str(tmp_path / "settings.db")) == type_
    assert network_file_system("/settings.db") is None


@pytest.mark.parametrize("type_", LOCAL_TYPES)
def test_local(type_: str, mounts: Path, tmp_path: Path) -> None:
    mounts.write_text(ROOT + mount(str(tmp_path.resolve()), type_))
    assert network_file_system(str(tmp_path / "settings.db")) is None


def test_symlinks_are_followed(mounts: Path, tmp_path: Path) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    far.mkdir()
    near.mkdir()
    (near / "to_far").symlink_to(far)
    (far / "to_near.db").symlink_to(near / "settings.db")
    mounts.write_text(ROOT + mount(str(far.resolve()), "nfs4"))
    assert network_file_system(str(near / "to_far" / "settings.db")) == "nfs4"
    assert network_file_system(str(far / "to_near.db")) is None


def test_relative_path(mounts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts.write_text(ROOT + mount(str(tmp_path.resolve()), "nfs4"))
    monkeypatch.chdir(tmp_path)
    assert network_file_system("settings.db") == "nfs4"


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\rb", b"a\r\xff", "café".encode()])
def test_bytes_of_names_are_kept(name: bytes, mounts: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path.resolve()) + b"/" + name
    mounts.write_bytes(ROOT.encode() + b"90 22 0:50 / " + folder + b" rw - nfs4 filer:/ rw\n")
    assert network_file_system(os.fsdecode(folder + b"/settings.db")) == "nfs4"
    assert network_file_system(os.fsdecode(folder + b"2/settings.db")) is None


def test_automount_is_seen(mounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mounting(path: str) -> str:
        mounts.write_text(ROOT + mount("/net/filer", "nfs4"))
        return path

    monkeypatch.setattr(os.path, "realpath", mounting)
    assert network_file_system("/net/filer/settings.db") == "nfs4"


def test_system_that_does_not_tell(mounts: Path) -> None:
    mounts.unlink()
    assert network_file_system("/mnt/settings.db") is None
    mounts.mkdir()
    assert network_file_system("/mnt/settings.db") is None


def test_no_mount_holds_the_path(mounts: Path) -> None:
    mounts.write_text("")
    assert network_file_system("/mnt/settings.db") is None


def test_this_machine(tmp_path: Path) -> None:
    with open(mountinfo.MOUNTINFO, "rb") as file:
        text = os.fsdecode(file.read())
    assert file_system("/proc", text) == "proc"
    assert file_system(f"/proc/{os.getpid()}/stat", text) == "proc"
    assert network_file_system("/proc/version") is None
    here = file_system(str(tmp_path.resolve()), text)
    assert here
    assert network_file_system(str(tmp_path)) in (None, here)


def test_examples() -> None:
    results = doctest.testmod(mountinfo)
    assert results.attempted
    assert not results.failed
