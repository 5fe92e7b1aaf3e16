#!/usr/bin/env bash
# Installs, through apt-get, what the tests need and pip cannot install.
#
# Usage: tests/install_requirements.sh path/to/python
set -euo pipefail

python=$1
missing=()

# require PACKAGE COMMAND...: PACKAGE is missing when COMMAND fails.
require() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

find_missing() {
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    missing=()
    # Debian leaves CPython's own tests out of its python3.
    require "libpython$version-testsuite" "$python" -c "import test.mapping_tests"
    # Counts the syncs of a file, which nothing inside the process can.
    require strace command -v strace
    # Another program that writes to the file.
    require sqlite3 command -v sqlite3
}

fail() {
    echo "$0: the tests need ${missing[*]}: $1" >&2
    exit 1
}

apt() {
    local as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get --quiet --quiet -o DPkg::Lock::Timeout=300 "$@"
}

install() {
    apt install --yes --no-install-recommends "${missing[@]}"
}

find_missing
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi

command -v apt-get >/dev/null || fail "please install them (there is no apt-get here)"
[ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null ||
    fail "please run 'apt-get install ${missing[*]}' as root"

echo "Installing ${missing[*]}"
# The package lists may be absent or out of date: fetch them only when that shows.
install || { apt update && install; } || fail "apt-get could not install them"

find_missing
if [ ${#missing[@]} -ne 0 ]; then
    fail "apt-get installed them, but $python does not see them"
fi
