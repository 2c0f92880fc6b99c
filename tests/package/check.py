"""Is what we would publish what we tested? `nox -s package` runs this, from outside any virtual environment of ours.

Builds sdist and wheel twice, from two copies of the tree in different places, and compares the bytes; builds the wheel
from the sdist as well, and sees that an index can show its description. Then installs the wheel with each extra into a
new environment of each Python, and runs smoke.py there, in a directory of its own, against real servers. Leaves the
files in dist/.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
EXTRAS = ["", "redis", "memcached", "etcd", "celery", "django", "cli", "otel", "prometheus", "all"]
WHEN = "1735689600"  # 2025-01-01, where no commit says another time

sys.path.insert(0, str(ROOT / "tests"))

from servers import EtcdServer, MemcachedServer, RedisServer  # noqa: E402  # it lies beside


def main() -> None:
    """Do it all; the first thing that is wrong ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", default=[], help="an interpreter to try; may be repeated")
    parser.add_argument("--only", action="append", choices=[extra or "none" for extra in EXTRAS], help="this extra")
    chosen = parser.parse_args()
    extras = [extra for extra in EXTRAS if not chosen.only or (extra or "none") in chosen.only]
    with tempfile.TemporaryDirectory(prefix="atomiclock-package-") as folder:
        wheel = build(Path(folder))
        with servers(Path(folder)) as urls:
            for python in chosen.python or [sys.executable]:
                for extra in extras:
                    try_out(wheel, python, extra, urls, Path(folder))
    print(f"{len(chosen.python) or 1} Pythons, {len(extras)} sets of extras: all well")


def build(folder: Path) -> Path:
    """The wheel, when two builds agreed on every byte, and the sdist makes the same one."""
    first, second = (made(tree(folder / place), folder / f"{place}-dist") for place in ("here", "there"))
    if (differ := [name for name in first if first[name] != second.get(name)]) or first.keys() != second.keys():
        raise SystemExit(f"two builds differ: {differ or (sorted(first), sorted(second))}")
    (sdist,) = (name for name in first if name.endswith(".tar.gz"))
    (wheel,) = (name for name in first if name.endswith(".whl"))
    with tarfile.open(folder / "here-dist" / sdist) as archive:
        names = archive.getnames()
        archive.extractall(folder / "unpacked", filter="data")
    again = made(folder / "unpacked" / sdist.removesuffix(".tar.gz"), folder / "again-dist", "--wheel")
    if again != {wheel: first[wheel]}:
        raise SystemExit("the sdist makes another wheel than the tree")
    look_at(names, sdist)
    page(folder / "here-dist")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    shutil.copytree(folder / "here-dist", ROOT / "dist")
    print(f"{sdist} and {wheel}: two builds, the same bytes; in {os.path.relpath(ROOT / 'dist')}")
    return ROOT / "dist" / wheel


def tree(place: Path) -> Path:
    """A copy of what git tracks, with the times of today, so that none of them may count."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:  # an unpacked sdist
        return Path(shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns("dist", "build", ".nox", "__pycache__")))
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / name)
    return place


def made(source: Path, target: Path, *what: str) -> dict[str, bytes]:
    """What `python -m build` makes of `source`, by file name."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch()}
    run(
        [sys.executable, "-m", "build", *(what or ("--sdist", "--wheel")), "--outdir", str(target), str(source)],
        environment,
    )
    return {path.name: path.read_bytes() for path in target.iterdir() if not path.name.startswith(".")}


def epoch() -> str:
    """The time that the files in the archives bear: that of the commit."""
    asked = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    return os.environ.get("SOURCE_DATE_EPOCH") or asked.stdout.strip() or WHEN


def look_at(names: list[str], sdist: str) -> None:
    """The sdist has what one needs to build and to test it, and the changelog speaks of this version."""
    inside = {name.partition("/")[2] for name in names}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "noxfile.py", "src/atomiclock/py.typed", "tests/conftest.py"}
    if wanted - inside:
        raise SystemExit(f"{sdist} lacks {sorted(wanted - inside)}")
    version = sdist.removeprefix("atomiclock-").removesuffix(".tar.gz")
    if not re.search(rf"^## .*\b{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M):
        raise SystemExit(f"CHANGELOG.md has no heading for {version}")


def page(dist: Path) -> None:
    """An index can show the description, in which no link needs a file that is not there."""
    run([sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.glob("atomiclock-*"))])
    for archive in dist.glob("*.whl"):
        with zipfile.ZipFile(archive) as opened:
            (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
            text = opened.read(name).decode()
        if "nox -s demo" not in text:
            raise SystemExit(f"{archive.name} is not described by the README")
        if dead := re.findall(r"\]\((?!https?:)[^)]*\)", text):
            raise SystemExit(f"the description in {archive.name} has links to files: {dead}")


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    """The URL of a real server for each extra that needs one."""
    started = []
    urls = {}
    try:
        for extra, kind in (("redis", RedisServer), ("memcached", MemcachedServer), ("etcd", EtcdServer)):
            place = folder / f"server-{extra}"
            place.mkdir()
            started.append(kind(place).start())
            urls[extra] = started[-1].url
        yield urls
    finally:
        for server in started:
            server.stop()


def try_out(wheel: Path, python: str, extra: str, urls: dict[str, str], folder: Path) -> None:
    """Install the wheel with `extra` into a new environment of `python`, and run the smoke test there."""
    home = folder / "venv"
    shutil.rmtree(home, ignore_errors=True)
    run([sys.executable, "-m", "virtualenv", "--quiet", "--python", python, str(home)])
    inside = str(home / "bin" / "python")
    run([inside, "-m", "pip", "install", "--quiet", f"{wheel}[{extra}]" if extra else str(wheel)])
    run([inside, "-m", "pip", "check", "--quiet"])
    elsewhere = folder / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    elsewhere.mkdir()
    shutil.copy(SMOKE, elsewhere)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ATOMICLOCK", "PYTHON"))}
    environment |= {"XDG_STATE_HOME": str(elsewhere), "VIRTUAL_ENV": str(home)}
    environment["PATH"] = f"{home / 'bin'}:{environment.get('PATH', '')}"
    pairs = [f"{kind}={url}" for kind, url in urls.items()]
    run([inside, "-W", "error", "smoke.py", extra or "none", *pairs], environment, elsewhere)


def run(command: list[str], environment: dict[str, str] | None = None, place: Path | None = None) -> None:
    """Run it quietly; what it said is shown if it failed."""
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}\nexit code {done.returncode}")
    if place is not None:
        print(done.stdout, end="", flush=True)


if __name__ == "__main__":
    main()
