#!/bin/sh
# Makes a bare Debian or Ubuntu machine able to build timezero (no argument), to test and show it as well ("all"), or to
# fuzz it ("fuzz").
#
# As root, packages that are missing are installed; nothing is touched when none is. Otherwise one line says
# which to install. What is tested is the tool or file itself, not the package: it may come from elsewhere.
set -eu
PYTHON=${PYTHON:-python3}

have_file() { for f in "$@"; do [ -e "$f" ] && return 0; done; return 1; }
have_tool() { command -v "$1" >/dev/null 2>&1 || have_file "/usr/sbin/$1" "/sbin/$1"; }

missing=""
optional=""
need() { missing="$missing $1"; }

have_tool "$PYTHON" || need python3
if have_tool "$PYTHON"; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "timezero: $PYTHON is $("$PYTHON" -V 2>&1 | cut -d' ' -f2), but 3.11 or later is needed" >&2
        exit 1
    }
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
    have_file "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h" || need python3-dev
else
    need python3-venv
    need python3-dev
fi
have_tool cc || need gcc
have_tool pkg-config || need pkg-config
have_file /usr/include/stdio.h || need libc6-dev
have_file /usr/include/xxhash.h /usr/local/include/xxhash.h || need libxxhash-dev
have_file /usr/include/liburing.h /usr/local/include/liburing.h || optional="$optional liburing-dev"

if [ "${1:-}" = all ]; then
    have_tool qemu-io || need qemu-utils
    have_tool qemu-storage-daemon || need qemu-system-common
    have_tool nbdkit || need nbdkit
    have_tool file || need file # without it, nbdinfo describes an export by bytes that are no text
    { have_tool nbdfuse && have_tool nbdinfo; } || need libnbd-bin
    have_tool fusermount3 || need fuse3
    have_tool fio || need fio
    have_tool mkfs.ext4 || need e2fsprogs
    have_tool mkfs.xfs || need xfsprogs
    have_tool mkfs.btrfs || need btrfs-progs
    have_tool losetup || need mount
    have_tool qemu-ga || need qemu-guest-agent
    have_file /usr/lib/postgresql/*/bin/postgres || have_tool postgres || need postgresql
fi
if [ "${1:-}" = fuzz ]; then
    have_tool clang || need clang
    have_file /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer*.a || need libclang-rt-dev
fi

[ -n "$missing$optional" ] || exit 0
if [ "$(id -u)" = 0 ] && have_tool apt-get; then
    export DEBIAN_FRONTEND=noninteractive
    echo "timezero: installing$missing$optional"
    case "$missing " in
    *" postgresql "*) # tests make their own clusters: none is to be made, and started, with the package
        if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
            mkdir -p /etc/postgresql-common
            echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
        fi
        ;;
    esac
    # shellcheck disable=SC2086 # a list of words
    set -- -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install $missing $optional
    apt-get "$@" >/dev/null 2>&1 || { apt-get -qq update && apt-get "$@" >/dev/null; }
elif [ -n "$missing" ]; then
    echo "timezero: please install first: apt install$missing$optional" >&2
    exit 1
else
    echo "timezero: building with the thread engine only; for io_uring: apt install$optional" >&2
fi
