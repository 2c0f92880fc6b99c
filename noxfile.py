"""Everything a developer runs. `pip install nox`, then `nox -s demo`, `nox -s tests`, or `nox -l` for the rest."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "typing", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = True

HERE = Path(__file__).parent
GROUPS = nox.project.load_toml("pyproject.toml")
EVERYTHING = ".[all]"
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
CELERIES = ["5.4", "5.5", "5.6"]
"""Lines of Celery that are tried beside the newest."""
SERVERS = {
    "redis-server": "redis-server",
    "memcached": "memcached",
    "etcd": "etcd-server",
    "etcdctl": "etcd-client",
    "openssl": "openssl",
    "rabbitmq-server": "rabbitmq-server",
    "faketime": "faketime",
}
"""Programs that the tests start, and Debian's packages with them."""
SERVICES = {
    "redis-server": "redis-server",
    "memcached": "memcached",
    "etcd-server": "etcd",
    "rabbitmq-server": "rabbitmq-server",
}
"""What systemd starts when those packages are installed."""

FAULTS = [
    "tests/faults", "tests/policy", "tests/mutants", "tests/security", "tests/fencing", "tests/redis/test_pool.py",
    "tests/memcached/test_faults.py", "tests/etcd/test_outages.py", "tests/etcd/test_processes.py",
]  # fmt: skip
"""Where it is tried what goes wrong."""


@nox.session
def demo(session: nox.Session) -> None:
    """Several Celery workers import real feeds, never two imports of one feed at once. Try: -- --url redis://HOST"""
    session.install(".[celery,django,redis]", *_group("demo"))
    _no_surprises(session)
    session.run("python", "examples/import_feed/demo.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, on real servers, under the Python that runs nox."""
    _run_tests(session)


@nox.session(python=False)
def tests_all(session: nox.Session) -> None:
    """All tests under each of Python 3.10 to 3.13 that this machine has; the summary names those it has not."""
    _from_all.update(PYTHONS)
    for version in PYTHONS:
        session.notify(f"tests-{version}", posargs=session.posargs)


_from_all: set[str] = set()


def _interpreter(version: str) -> str | None:
    """A Python of that version which really starts: a shim on the PATH may lead nowhere."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for found in (shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python{version}")))):
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    return None


def _tests_under(version: str) -> None:
    python = _interpreter(version)

    @nox.session(name=f"tests-{version}", python=python or False)
    def tests_under(session: nox.Session) -> None:
        if python is None:
            missing = f"no Python {version} on this machine: NOT TESTED"
            if version in _from_all:
                session.skip(missing)
            session.error(missing)
        _run_tests(session)

    tests_under.__doc__ = f"All tests under Python {version}."


for _version in PYTHONS:
    _tests_under(_version)


@nox.session
def faults(session: nox.Session) -> None:
    """What goes wrong, in the long form: every fault on every store, longer histories, many more schedules."""
    session.env["ATOMICLOCK_FAULTS"] = "long"
    _run_tests(session, *FAULTS)


def _run_tests(session: nox.Session, *which: str) -> None:
    ensure_servers(session)
    session.install("-e", EVERYTHING, *_group("tests"))
    _no_surprises(session)
    _let_pytest_have_the_last_word(session)
    # Two at a time: most tests wait for something. Those of a class, or else of a file, share their servers.
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "loadscope", *(session.posargs or which))


def _let_pytest_have_the_last_word(session: nox.Session) -> None:
    """Drop nox's own line that follows pytest's summary when all went well. A failure is still reported."""
    praise = f"Session {session.name} was successful"
    logging.getLogger("nox").addFilter(lambda record: not record.getMessage().startswith(praise))


@nox.session
@nox.parametrize("release", [nox.param(f"=={line}.*", id=line) for line in CELERIES] + [nox.param("", id="newest")])
def celery_versions(session: nox.Session, release: str) -> None:
    """The tests of tasks, and the example, under each line of Celery, from the oldest that is supported."""
    ensure_servers(session)
    session.install("-e", EVERYTHING, f"celery{release}", *_group("tests"))
    _no_surprises(session)
    _let_pytest_have_the_last_word(session)
    where = session.posargs or ("tests/celery", "tests/example")
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "loadscope", *where)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, common mistakes, and known vulnerabilities of what the extras install."""
    session.install(*_group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    _audit(session)


def _audit(session: nox.Session) -> None:
    """Fail for a vulnerability that is known of a dependency; warn if the service which knows cannot be reached.

    Looked at are the versions that pip would install for the extras now, and not the tools in the session.
    """
    folder = Path(session.create_tmp())
    plan, wanted, found = folder / "plan.json", folder / "wanted.txt", folder / "found.json"
    found.unlink(missing_ok=True)
    resolve = ("python", "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(plan))
    session.run(*resolve, ".[redis,memcached,etcd,celery,django,cli]", silent=True)
    pinned = [each["metadata"] for each in json.loads(plan.read_text())["install"]]
    lines = [f"{one['name']}=={one['version']}" for one in pinned if one["name"] != "atomiclock"]
    wanted.write_text("\n".join(lines) + "\n")
    look = ("pip-audit", "--disable-pip", "--no-deps", "--progress-spinner=off", "--format=json", "-o", str(found))
    said = session.run(*look, "-r", str(wanted), silent=True, success_codes=[0, 1])
    why = str(said).strip().rpartition("\n")[2][:300]
    _judge(session, json.loads(found.read_text())["dependencies"] if found.exists() else [], why)


def _judge(session: nox.Session, dependencies: list[dict[str, Any]], why: str) -> None:
    """Fail for what is known, and never call a package clean of which the service has said nothing."""
    audited = [each for each in dependencies if "vulns" in each]
    bad = [each for each in audited if each["vulns"]]
    for each in bad:
        session.warn(f"{each['name']} {each['version']}: {', '.join(one['id'] for one in each['vulns'])}")
    if bad:
        session.error(f"{len(bad)} dependencies have known vulnerabilities")
    skipped = [each["name"] for each in dependencies if "vulns" not in each]
    if not audited:
        session.warn(f"NOT AUDITED: no service that knows of vulnerabilities could be reached. {why}")
        return
    if skipped:
        session.warn(f"NOT AUDITED: {', '.join(skipped)}, of which the service knows nothing")
    session.log(f"{len(audited)} dependencies have no known vulnerability")


@nox.session
def typing(session: nox.Session) -> None:
    """The sources under mypy --strict, and the public API and the tutorial as mypy and pyright see them."""
    session.install(EVERYTHING, *_group("typing"))
    session.run("mypy")
    session.run("mypy", "tests/typing")
    shown = Path(session.create_tmp()) / "pages"
    session.run("python", "tests/typing/pages.py", str(shown), "docs/tutorial.md")
    lenient = ("--allow-untyped-defs", "--allow-untyped-calls")  # an example need not annotate its own functions
    session.run("mypy", "--config-file", "pyproject.toml", *lenient, str(shown))
    session.run("pyright", "src", "tests/typing", str(shown))


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, in build/docs; warnings are errors. Its examples run with the tests."""
    session.install("-e", EVERYTHING, *_group("docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "build/docs", *session.posargs)
    session.log("open build/docs/index.html")


@nox.session
def package(session: nox.Session) -> None:
    """Build twice, compare byte by byte, and try the wheel with each extra on each Python. Try: -- --only redis"""
    ensure_servers(session)
    session.install(*_group("release"))
    _no_surprises(session)
    pythons = {version: _interpreter(version) for version in PYTHONS}
    missing = [version for version, found in pythons.items() if found is None]
    found = [f"--python={path}" for path in pythons.values() if path]
    session.run("python", "tests/package/check.py", *found, *session.posargs)
    if missing:
        session.warn(f"no Python {', '.join(missing)} on this machine: NOT TESTED")


@nox.session
def bench(session: nox.Session) -> None:
    """Side by side with the raw clients and with other libraries. Try: -- --quick, or -- --only redis --only S2"""
    ensure_servers(session)
    session.install(".[redis,memcached,etcd,django]", *_group("bench"))
    _no_surprises(session)
    session.run("python", "benchmarks/bench.py", *session.posargs)


def _group(name: str) -> tuple[str, ...]:
    return nox.project.dependency_groups(GROUPS, name)


def _no_surprises(session: nox.Session) -> None:
    """What the developer's own shell says about locks is not meant for these runs."""
    session.env["ATOMICLOCK_URL"] = ""


def ensure_servers(session: nox.Session) -> None:
    """Install the servers that are missing, where apt-get may be used; else say what to install, and fail."""
    missing = {package for program, package in SERVERS.items() if _which(program) is None}
    if not missing:
        return
    line = f"apt-get install -y --no-install-recommends {' '.join(sorted(missing))}"
    root = _root()
    if root is None:
        session.error(f"the tests need real servers. Please run as root:  apt-get update && {line}")
    session.log(f"{', '.join(sorted(missing))} missing: installing by apt-get")
    # At run level 1 init scripts start no service: the tests start their own, on free ports.
    quiet = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1"]
    for command in ("apt-get update", line):
        session.run(*quiet, *command.split(), external=True, silent=True)
    if Path("/run/systemd/system").exists():  # systemd asks nobody, and has started it
        for package in sorted(missing & SERVICES.keys()):  # never one that was there before
            stop = [*root, "systemctl", "disable", "--now", SERVICES[package]]
            session.run(*stop, external=True, silent=True, success_codes=[0, 1, 5])
    still = [program for program in SERVERS if _which(program) is None]
    if still:
        session.error(f"{', '.join(still)} still missing after: {line}")


def _which(program: str) -> str | None:
    """Where `program` is. A user's PATH may lack the directories of servers."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _root() -> list[str] | None:
    """What to write before a command that needs root; `None` if we cannot become root without being asked."""
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    unasked = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
    return ["sudo", "-n"] if unasked.returncode == 0 else None
