#!/usr/bin/env bash
# Installs, through apt-get, what the tests need and pip cannot install.
#
# A package of a server would also start it, now and with the machine: here it does neither. The
# tests start servers of their own.
#
# Usage: tests/install_requirements.sh path/to/python [PACKAGE...]
# With packages: only those of them that the tests need.
set -euo pipefail

python=$1
shift
wanted=("$@")
missing=()

# require PACKAGE COMMAND...: PACKAGE is missing when COMMAND fails.
require() {
    local package=$1
    shift
    if [ ${#wanted[@]} -ne 0 ] && [[ " ${wanted[*]} " != *" $package "* ]]; then
        return
    fi
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

any_command() {
    local name
    for name; do
        if command -v "$name"; then
            return
        fi
    done
    return 1
}

# Debian keeps the programs of every version in a folder of its own, which is not on the PATH.
postgres_programs() {
    local folder
    for folder in /usr/lib/postgresql/*/bin; do
        if [ -x "$folder/postgres" ] && [ -x "$folder/initdb" ]; then
            return
        fi
    done
    command -v postgres && command -v initdb
}

# Where Debian keeps the libraries of its Java programs: the server, and what it logs with.
zookeeper_server() {
    local jar
    for jar in zookeeper slf4j-api slf4j-simple; do
        [ -e "/usr/share/java/$jar.jar" ] || return
    done
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
    # Is a sentinel, too: no need of the package redis-sentinel.
    require redis-server any_command redis-server valkey-server
    # Makes the certificates of servers with TLS.
    require openssl command -v openssl
    # Hold the stamps and the rows of Django models.
    require memcached command -v memcached
    require postgresql postgres_programs
    # ZooKeeper's server itself: the package zookeeper adds scripts to it, and needs a Java with
    # windows, which is twice as large.
    require libzookeeper-java zookeeper_server
    # There may be a program of that name that only says that there is no Java.
    require default-jre-headless java -version
}

fail() {
    echo "$0: needed, and missing: ${missing[*]}: $1" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get --quiet --quiet -o DPkg::Lock::Timeout=300 "$@"
}

# Packages ask this program, where there is one, whether they may start a server.
policy=/usr/sbin/policy-rc.d

# One of somebody else's stays: it is not for us to say what that allows.
forbid_starting() {
    if [ -e "$policy" ] || [ -L "$policy" ]; then
        return
    fi
    trap 'as_root rm -f "$policy"' EXIT
    # So that the line above also runs when one of these ends us.
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '%s\n' '#!/bin/sh' '# Made by install_requirements.sh, which removes it.' 'exit 101' |
        as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
}

# The package would make a cluster, which starts with the machine, under any policy. There is no
# other way to tell it; a file that is there says what somebody else wants.
forbid_cluster() {
    local settings=/etc/postgresql-common/createcluster.conf
    if [[ " ${missing[*]} " != *" postgresql "* ]] || [ -e "$settings" ]; then
        return
    fi
    as_root mkdir -p "$(dirname "$settings")"
    printf '%s\n' '# Made by install_requirements.sh: its tests have clusters of their own, and need' \
        '# none that starts with the machine. Remove the line to get one with every version.' \
        'create_main_cluster = false' | as_root tee "$settings" >/dev/null
}

enabled_units() {
    systemctl list-unit-files --type=service,socket --state=enabled --no-legend |
        awk '{ print $1 }' | sort
}

# None where systemd is installed but does not run.
running_units() {
    systemctl list-units --type=service,socket --state=active,activating,reloading \
        --plain --no-legend 2>/dev/null | awk '{ print $1 }' | sort || true
}

install() {
    apt install --yes --no-install-recommends "${missing[@]}"
}

# Installs what is missing, and leaves nothing enabled or running that was not.
install_without_services() {
    local enabled running new status=0
    # Without the list from before, everything would look new.
    if ! command -v systemctl >/dev/null || ! enabled=$(enabled_units); then
        install
        return
    fi
    running=$(running_units)
    install || status=$?
    mapfile -t new < <(comm -13 <(echo "$enabled") <(enabled_units))
    if [ ${#new[@]} -ne 0 ]; then
        as_root systemctl disable --quiet "${new[@]}" || status=1
        # A policy that was there before us may have let them start.
        mapfile -t new < <(printf '%s\n' "${new[@]}" |
            comm -12 - <(comm -13 <(echo "$running") <(running_units)))
        [ ${#new[@]} -eq 0 ] || as_root systemctl stop "${new[@]}" || status=1
    fi
    return "$status"
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
forbid_starting
forbid_cluster
install_without_services || { apt update && install_without_services; } ||
    fail "apt-get could not install them"

find_missing
if [ ${#missing[@]} -ne 0 ]; then
    fail "apt-get installed them, but $python does not see them"
fi
