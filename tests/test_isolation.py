"""The commands do nothing outside their task, and bear poor surroundings: no network, no home, closed streams, full disks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

ROOT = os.geteuid() == 0 if hasattr(os, "geteuid") else False
NAMESPACES = ROOT and shutil.which("unshare") and not subprocess.run(["unshare", "-n", "-m", "true"]).returncode
needs_namespaces = pytest.mark.skipif(not NAMESPACES, reason="needs root and Linux namespaces")
# every socket that is opened is named in a file; libraries in C are seen too
SPY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int socket(int domain, int type, int protocol) {
    int (*real)(int, int, int) = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
    const char *path = getenv("SPY_LOG");
    if (path && (domain == AF_INET || domain == AF_INET6)) {
        int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (file >= 0) { (void)!write(file, "socket\n", 7); close(file); }
    }
    return real(domain, type, protocol);
}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isolated")
    y, x = np.mgrid[0:96, 0:96]
    data = np.stack([60 + x, 40 + y, 90 + (x + y) // 2]).astype("uint8")
    with rasterio.open(
        folder / "a.tif", "w", driver="GTiff", width=96, height=96, count=3, dtype="uint8", crs="EPSG:32633",
        transform=from_origin(5e5, 4.6e6, 1, 1),
    ) as target:  # fmt: skip
        target.write(data)
    command = [sys.executable, "-m", "perigee.onboard", str(folder / "a.tif")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def spy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spy")
    (folder / "spy.c").write_text(SPY)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "spy.so", "spy.c", "-ldl"], cwd=folder, check=True)
    return folder / "spy.so"


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI", "HOME", "XDG_CACHE_HOME")}
    return kept | more


PERIGEE = [sys.executable, "-m"]
COMMANDS = {
    "onboard-encode": ["perigee.onboard", "a.tif", "-o", "out/x.peri"],
    "onboard-encode doctor": ["perigee.onboard", "doctor"],
    "ground-decode": ["perigee.ground", "a.peri", "-o", "out/x.tif", "--stac", "out/x.json"],
    "ground-decode --compensation": ["perigee.ground", "a.peri", "-o", "out/y.png", "--compensation", "cosmic"],
    "ground-serve --help": ["perigee.ground.service", "--help"],
}


@needs_namespaces
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_opens_no_socket_and_leaves_no_file(name, place, spy, tmp_path):
    """Without a network interface, with a home that is empty and cannot be written to."""
    work, home, log = tmp_path / "work", tmp_path / "home", tmp_path / "sockets"
    (work / "out").mkdir(parents=True)
    home.mkdir()
    for file in ("a.tif", "a.peri"):
        shutil.copy(place / file, work)
    before = {p.relative_to(work) for p in work.rglob("*")}
    script = f'mount -t tmpfs -o ro tmpfs "{home}" && exec "$@"'
    command = ["unshare", "-n", "-m", "sh", "-c", script, "sh", *PERIGEE, *COMMANDS[name]]
    settings = environment(HOME=str(home), LD_PRELOAD=str(spy), SPY_LOG=str(log), PYTHONDONTWRITEBYTECODE="1")
    result = subprocess.run(command, cwd=work, env=settings, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert not log.exists(), f"{len(log.read_text().splitlines())} internet sockets were opened"
    assert not list(home.iterdir())
    named = {Path(part) for part in COMMANDS[name] if part.startswith("out/")}
    assert {p.relative_to(work) for p in work.rglob("*")} - before == named


def test_the_spy_sees_sockets(spy, tmp_path):
    """The test above could otherwise not fail."""
    log = tmp_path / "sockets"
    settings = environment(LD_PRELOAD=str(spy), SPY_LOG=str(log))
    subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], env=settings, check=True)
    assert log.read_text() == "socket\n"


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["perigee.onboard a.tif -o x.peri", "perigee.ground a.peri -o x.tif"])
def test_closed_standard_streams_are_no_error(command, closed, place, tmp_path):
    for file in ("a.tif", "a.peri"):
        shutil.copy(place / file, tmp_path)
    result = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m {command} {closed}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    out = tmp_path / command.split()[-1]
    whole = tmp_path / f"whole{out.suffix}"
    subprocess.run(
        f"{sys.executable} -m {command.replace(out.name, whole.name)}".split(),
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert out.read_bytes() == whole.read_bytes(), "nothing was written into the output by mistake"


def test_a_file_name_that_is_not_utf8_does_not_end_the_batch(place, tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b"bad\xff.tif")
    shutil.copy(place / "a.tif", tmp_path / "good.tif")
    try:
        shutil.copy(os.fsencode(place / "a.tif"), odd)
    except OSError:
        pytest.skip("this file system has no such names")
    broken = os.path.join(os.fsencode(tmp_path), b"broken\xfe.tif")
    Path(os.fsdecode(broken)).write_bytes(b"no TIFF")
    for more in ([], ["--json"]):
        command = [*PERIGEE, "perigee.onboard", broken, odd, str(tmp_path / "good.tif"), "--overwrite", *more]
        settings = environment(HOME=str(tmp_path), PYTHONIOENCODING="utf-8")
        result = subprocess.run(command, capture_output=True, env=settings)
        assert result.returncode == os.EX_DATAERR and b"Traceback" not in result.stderr, result.stderr
        lines = result.stdout.splitlines()
        assert len(lines) == (3 if more else 2) and (tmp_path / "good.peri").exists()
        assert os.path.exists(os.path.join(os.fsencode(tmp_path), b"bad\xff.peri"))
        if more:
            assert json.loads(lines[0])["exit_code"] == os.EX_DATAERR


@needs_namespaces
@pytest.mark.parametrize("size", ["64k", "300k", "900k"])
def test_a_full_disk_is_one_line_and_leaves_nothing(size, place, tmp_path, rng):
    noise = rng.integers(0, 255, (3, 700, 700), np.uint8)
    with rasterio.open(
        tmp_path / "big.tif", "w", driver="GTiff", width=700, height=700, count=3, dtype="uint8"
    ) as target:
        target.write(noise)
    subprocess.run(
        [*PERIGEE, "perigee.onboard", str(tmp_path / "big.tif"), "-q", "60"], check=True, capture_output=True
    )
    small = tmp_path / "small"
    small.mkdir()
    for command in (
        ["perigee.ground", str(tmp_path / "big.peri"), "-o", "small/o.tif"],
        ["perigee.ground", str(tmp_path / "big.peri"), "-o", "small/o.png"],
    ):
        script = f'mount -t tmpfs -o size={size} tmpfs small && "$@"; code=$?; ls -A small; exit $code'
        result = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *PERIGEE, *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode in (os.EX_CANTCREAT, os.EX_IOERR), (result.returncode, result.stderr)
        assert "Traceback" not in result.stderr and not result.stdout.strip(), result.stdout


def test_an_unfinished_product_does_not_look_like_one(place, tmp_path):
    """While a product is written, nothing in its folder has a product's suffix or a visible name."""
    script = (
        "import sys, pathlib, perigee.ground.products as p\n"
        "from perigee.ground.cli import main\n"
        "real = p._copy\n"
        "def copy(plain, path, **options):\n"
        "    real(plain, path, **options)\n"
        f"    print(sorted(x.name for x in pathlib.Path({str(tmp_path)!r}).rglob('*')))\n"
        "p._copy = copy\n"
        f"sys.exit(main([{str(place / 'a.peri')!r}, '-o', {str(tmp_path / 'o.tif')!r}]))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    names = json.loads(result.stdout.splitlines()[0].replace("'", '"'))
    assert names and all(name.endswith(".part") for name in names)
    assert [p.name for p in tmp_path.iterdir()] == ["o.tif"]


def shell(line, folder):
    """A line for bash in which {encode} and {decode} are the commands."""
    encode, decode = (f"{sys.executable} -m perigee.{room}" for room in ("onboard", "ground"))
    line = "set -o pipefail; " + line.format(encode=encode, decode=decode)
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=120)


LONG = "x" * 300
CASES = {
    "{decode} a.peri -o o.tif | true": 0,
    "{decode} a.peri --info | true": 0,
    "{decode} a.peri -o o.tif > /dev/full": 74,
    "{encode} a.tif -o o.peri > /dev/full": 74,
    "cat a.peri | {decode} /dev/stdin -o o.tif": 0,
    "{decode} <(cat a.peri) -o o.tif": 0,
    "{decode} /dev/zero -o o.tif": 66,
    "{decode} fifo -o o.tif": 66,
    "{encode} fifo -o o.peri": 66,
    "{encode} /dev/zero -o o.peri": 66,
    "truncate -s 5G sparse; {decode} sparse -o o.tif": 65,
    "{decode} a.peri -o loop.tif --overwrite": 73,
    "{encode} a.tif -o loop.tif --overwrite": 73,
    f"{{decode}} a.peri -o {LONG}.tif": 73,
    f"{{encode}} a.tif -o {LONG}.peri": 73,
    "{encode} absent.tif 2> /dev/full": 66,
    "{encode} --absent 2> /dev/full": 64,
}


@pytest.mark.parametrize("line", CASES, ids=range(len(CASES)))
def test_odd_inputs_and_outputs_have_exit_codes(line, place, tmp_path):
    for file in ("a.tif", "a.peri"):
        shutil.copy(place / file, tmp_path)
    (tmp_path / "loop.tif").symlink_to("loop.tif")
    os.mkfifo(tmp_path / "fifo")
    result = shell(line, tmp_path)
    assert result.returncode == CASES[line], result.stderr
    assert len(result.stderr.splitlines()) == (CASES[line] != 0 and "2>" not in line), result.stderr
    assert not list(tmp_path.glob(".perigee-*")) and (tmp_path / "loop.tif").is_symlink()


def ended(place, folder, number, prefix=()):
    """The exit code of a decoding that gets a signal while its product is written."""
    script = (
        "import os, sys, perigee.ground.orders as orders\n"
        "from perigee.ground.cli import main\n"
        "write = orders.write_cog\n"
        "def slowly(*args):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    write(*args)\n"
        "orders.write_cog = slowly\n"
        f"sys.exit(main([{str(place / 'a.peri')!r}, '-o', {str(folder / 'o.tif')!r}]))\n"
    )
    return subprocess.run([*prefix, sys.executable, "-c", script], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_ends_a_command_leaves_no_unfinished_file(number, place, tmp_path):
    result = ended(place, tmp_path, number)
    assert result.returncode == 128 + number and not result.stderr and not list(tmp_path.iterdir())


def test_nohup_is_heeded(place, tmp_path):
    result = ended(place, tmp_path, signal.SIGHUP, ["nohup"])
    assert result.returncode == 0 and [path.name for path in tmp_path.iterdir()] == ["o.tif"], result.stderr
