# SPDX-FileCopyrightText: 2026 The hf_share authors
# SPDX-License-Identifier: Apache-2.0
"""peft's tests, taken from the source distribution of the installed version and cached for the user."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath


# Not `tests`: that name is ours, and site-packages often holds another one.
PACKAGE = "peft_tests"

PATIENCE = 300  # seconds for one call of pip; a machine without network must not wait for ever


class Unavailable(Exception):
    """peft's tests cannot be had here; the message says why."""


def directory() -> Path:
    """The folder that holds `peft_tests`; made on first use. `Unavailable` if the index gives no sources."""
    version = importlib.metadata.version("peft")
    target = cache() / f"peft-{version}"
    if not (target / PACKAGE / "__init__.py").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            unpacked = unpack_tests(download_sources(version, Path(scratch)), Path(scratch) / "unpacked")
            publish(unpacked, target)
    return target


def cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hf_share" / "conformance"


def download_sources(version: str, into: Path) -> Path:
    """The `.tar.gz` of peft, by the user's pip, so that the user's index, mirror and certificates are obeyed.

    pip insists on building the metadata of what it downloads, which needs setuptools. It is taken from the
    environment when it is there; otherwise pip fetches it into an isolated build, which is slower.
    """
    errors = []
    for isolation in build_isolation():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-binary", "peft", *isolation, "--dest", str(into), f"peft=={version}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            errors.append(f"no answer in {PATIENCE} s")
            continue
        archives = list(into.glob("peft-*.tar.gz"))
        if done.returncode == 0 and archives:
            return archives[0]
        errors.append(last_error(done.stderr))
    raise Unavailable(f"pip cannot download the source distribution of peft {version}: {'; '.join(errors)}")


def build_isolation() -> list[list[str]]:
    isolated: list[list[str]] = [[]]
    return [["--no-build-isolation"], *isolated] if importlib.util.find_spec("setuptools") else isolated


def last_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["pip failed without a word"])[-1]


def unpack_tests(archive: Path, into: Path) -> Path:
    """Writes only the modules of `tests/`, as the package `peft_tests`, so that their relative imports work.

    peft's `conftest.py` is left out where there is one: it turns log lines of newer transformers into errors.
    """
    package = into / PACKAGE
    package.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            inside = len(path.parts) == 3 and path.parts[1] == "tests"
            source = tar.extractfile(member) if inside and path.suffix == ".py" else None
            if source and path.name != "conftest.py":
                (package / path.name).write_bytes(source.read())
    if not (package / "testing_common.py").exists():
        raise Unavailable(f"{archive.name} holds no tests")
    (package / "__init__.py").touch()
    return into


def publish(unpacked: Path, target: Path) -> None:
    """Renames into place; when another process was faster, its copy is as good."""
    try:
        unpacked.rename(target)
    except OSError:
        if not (target / PACKAGE / "__init__.py").exists():
            raise
