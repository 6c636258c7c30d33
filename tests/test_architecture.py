"""The shape of the house: which way imports point, how light the WAL path is, how large things may grow, and that
documentation says what the sources say."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import debian, environment, reference
from tools.surroundings import Refused, refuse_closed, server_account

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINTED = PYPROJECT["tool"]["importlinter"]["root_packages"]
SHIPPED = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
PACKAGES = [name for name in SHIPPED if (ROOT / name).is_dir()]
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
PROGRAMS = sorted(
    [*MODULES, *(path for name in ("tools", "benchmarks", "campaigns") for path in (ROOT / name).rglob("*.py"))]
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

LARGE, TOO_LARGE = 600, 900
HEAVY = {
    "sqlmodel", "sqlalchemy", "pydantic", "pydantic_core", "psycopg", "apprise", "prefect", "boto3", "botocore",
    "azure", "google", "requests", "numpy", "fastapi",
    "rich",
}  # fmt: skip
WAL_CPU_SECONDS = 0.10


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


class TestImports:
    def test_they_point_one_way(self) -> None:
        linter = Path(sys.executable).with_name("lint-imports")
        done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_every_package_is_under_contract(self) -> None:
        # The API stands beside the others' order and has a rule of its own below.
        assert sorted(LINTED) == sorted(set(PACKAGES) - {"api"})

    def test_the_api_knows_the_engine_only_and_has_one_door_to_prefect(self) -> None:
        others = {"flows", "tasks", "blocks", "deployments"}
        for path in sorted((ROOT / "api").rglob("*.py")):
            tops = {name.split(".")[0] for name in imports(path)}
            assert not tops & others, path
            assert "prefect" not in tops or path == ROOT / "api" / "runs.py", path

    def test_the_engine_prints_only_on_the_command_line(self) -> None:
        for path in (ROOT / "seawall").rglob("*.py"):
            inside = path.relative_to(ROOT / "seawall")
            if inside.parts[0] in ("cli", "__main__.py", "standalone"):
                continue
            calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
            assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


class TestWalPath:
    """PostgreSQL starts these commands once for every segment; a heavy import there is hours of a restore."""

    @pytest.mark.parametrize(
        "command",
        [
            "-I -S seawall/archive/start.py push --wait 0 --socket nowhere pg_wal/000000010000000000000001",
            "-I -S seawall/archive/start.py get --wait 0 --socket nowhere 00000002.history RECOVERYHISTORY",
            "-m seawall archive-push --wait 0 --socket nowhere pg_wal/000000010000000000000001",
            "-m seawall archive-get --wait 0 --socket nowhere 00000002.history RECOVERYHISTORY",
        ],
    )
    def test_a_command_starts_light(self, command: str) -> None:
        loaded, seconds = cost(command.split())
        assert loaded, "the observation itself failed"
        assert not {name.split(".")[0] for name in loaded} & HEAVY
        assert seconds <= WAL_CPU_SECONDS

    def test_what_the_agent_stores_with_imports_nothing_heavy(self) -> None:
        loaded, _ = cost(["-c", "import seawall.repository, seawall.storage.local"], runs=1)
        assert "seawall.repository" in loaded
        assert not {name.split(".")[0] for name in loaded} & (HEAVY - {"numpy"})

    def test_the_observation_sees_a_heavy_import(self) -> None:
        loaded, seconds = cost(["-c", "import sqlmodel"], runs=1)
        assert "sqlmodel" in loaded
        assert seconds > WAL_CPU_SECONDS


def cost(command: list[str], runs: int = 5) -> tuple[set[str], float]:
    """The modules that a Python command loads, and the least CPU seconds of several runs of it."""
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    ).stderr  # fmt: skip
    names = {line.rpartition("|")[2].strip() for line in loaded.splitlines() if line.startswith("import time:")}
    return names, min(cpu_seconds(command) for _ in range(runs))


def cpu_seconds(command: list[str]) -> float:
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


class TestSize:
    def test_no_module_outgrows_its_purpose(self) -> None:
        lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PROGRAMS}
        for path, lines in lengths.items():
            assert lines <= TOO_LARGE, f"{path.relative_to(ROOT)} has {lines} lines: it has more than one purpose"
            if lines > LARGE:
                warnings.warn(f"{path.relative_to(ROOT)} has {lines} lines", stacklevel=1)
        typical = statistics.median(lines for path, lines in lengths.items() if path.name != "__init__.py")
        assert typical <= 250, f"half of all modules have more than {typical} lines"

    def test_functions_read_as_sentences(self) -> None:
        lengths = [lines for path in MODULES for lines in function_lengths(path)]
        typical = statistics.median(lengths)
        assert typical <= 12, f"half of all functions have more than {typical} lines"

    def test_every_module_says_its_purpose(self) -> None:
        silent = [str(p.relative_to(ROOT)) for p in PROGRAMS if p.stat().st_size and not ast.get_docstring(tree(p))]
        assert silent == []

    def test_no_module_is_a_drawer_for_anything(self) -> None:
        assert [path for path in PROGRAMS if re.search(r"util|helper|manager|misc|common", path.stem)] == []


def function_lengths(path: Path) -> Iterator[int]:
    """Lines of each function without its docstring, which may be as long as it must."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            yield (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


class TestReference:
    @pytest.mark.parametrize("name", reference.PAGES)
    def test_a_page_made_from_the_sources_is_current(self, name: str) -> None:
        written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert written == reference.PAGES[name](), "run `make reference`"

    def test_every_error_code_is_documented_and_belongs_to_one_error(self) -> None:
        codes = [error.code for error in reference.error_classes()]
        assert len(codes) == len(set(codes)) > 30
        page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
        assert [code for code in codes if f"| `{code}` |" not in page] == []

    def test_every_setting_says_what_it_means(self) -> None:
        for kind in reference._SECTIONS.values():
            assert [name for name, _, meaning in reference.described(kind) if not meaning] == [], kind

    def test_every_setting_is_read_by_something(self) -> None:
        sources = "\n".join(p.read_text(encoding="utf-8") for p in MODULES if p != ROOT / "seawall" / "settings.py")
        sources += (ROOT / "seawall" / "settings.py").read_text(encoding="utf-8").partition("def load(")[0]
        names = {name for kind in reference._SECTIONS.values() for name, _, _ in reference.described(kind)}
        assert [name for name in sorted(names) if not re.search(rf"\.{name}\b", sources)] == []

    def test_every_verb_is_documented(self) -> None:
        from seawall.cli import VERBS

        page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
        assert [verb for verb in VERBS if f"## `seawall {verb}`" not in page] == []

    def test_every_exit_code_is_documented(self) -> None:
        page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
        codes = {error.exit_code for error in reference.error_classes()}
        assert [code for code in sorted(codes) if f"| {code} |" not in page] == []


class TestPages:
    def test_every_link_leads_somewhere(self) -> None:
        broken = [
            f"{page.relative_to(ROOT)} → {target}"
            for page in PAGES
            for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
            if not (page.parent / target).exists()
        ]
        assert broken == []

    def test_every_page_that_the_sources_name_exists(self) -> None:
        named = {
            name for path in MODULES for name in re.findall(r"docs/[\w/.-]+\.md", path.read_text(encoding="utf-8"))
        }
        assert [name for name in sorted(named) if not (ROOT / name).exists()] == []

    def test_every_make_command_that_the_pages_name_exists(self) -> None:
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        named = {
            name for page in PAGES for name in re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text(encoding="utf-8"))
        }
        assert named - targets == set()
        assert {"demo", "test"} <= named

    def test_every_seawall_command_that_the_pages_name_exists(self) -> None:
        from seawall.cli import VERBS

        known = {*VERBS, "archive-push", "archive-get"}
        named = {
            (page.name, verb)
            for page in PAGES
            for verb in re.findall(r"(?:`|\$ )seawall ([a-z][a-z-]*)", page.read_text(encoding="utf-8"))
        }
        assert [entry for entry in sorted(named) if entry[1] not in known] == []

    def test_every_decision_is_listed(self) -> None:
        index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
        assert [page.name for page in sorted((ROOT / "docs" / "adr").glob("*.md")) if page.name not in index] == []


class TestTree:
    def test_nothing_names_a_machine_or_a_package_index(self) -> None:
        # Written in pieces, so that this file does not contain what it looks for.
        hosts = "|".join(
            ["py" + r"pi\.org", "python" + r"hosted\.org", "registry\\.np" + r"mjs\.org", "deb\\.debi" + r"an\.org"]
        )
        folders = "|".join(rf"(?<![\w.~-])/{name}/" for name in ("wo" + "rk", "fa" + "rm", "ro" + "ot", "ho" + "me"))
        own = re.compile(f"{hosts}|{folders}")
        found = []
        for path in tracked():
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            found += [
                f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(text.splitlines(), 1) if own.search(line)
            ]
        assert found == []

    def test_the_lock_names_hashes_for_everything(self) -> None:
        lock = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")
        entries = re.split(r"\n(?=\S)", lock.strip())
        assert len(entries) > 100
        assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
        assert "://" not in lock

    def test_no_test_is_skipped_without_a_reason(self) -> None:
        for path in TESTS:
            for node in ast.walk(tree(path)):
                name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if name.endswith(("mark.skip", "mark.skipif", "mark.xfail")):
                    assert any(k.arg == "reason" for k in node.keywords), f"{path}:{node.lineno}"
                if name in ("pytest.skip", "pytest.xfail"):
                    assert node.args or node.keywords, f"{path}:{node.lineno}"
                bare = isinstance(node, ast.Attribute) and ast.unparse(node) in (
                    "pytest.mark.skip",
                    "pytest.mark.xfail",
                )
                assert not bare or f"{ast.unparse(node)}(" in path.read_text(encoding="utf-8"), f"{path}:{node.lineno}"

    def test_every_silenced_rule_says_why(self) -> None:
        silent = [
            f"{path.relative_to(ROOT)}:{number}"
            for path in [*PROGRAMS, *TESTS]
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if re.search(r"#\s*noqa(?::\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?\s*$", line)
        ]
        assert silent == []


class TestSetUp:
    def test_a_second_set_up_runs_nothing_until_the_lock_changes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ran: list[str] = []
        for name, value in {
            "PYTHON": Path(sys.executable),
            "LOCK": tmp_path / "lock",
            "_STAMP": tmp_path / "stamp",
        }.items():
            monkeypatch.setattr(environment, name, value)
        monkeypatch.setattr(environment, "provide_uv", lambda _base: Path("uv"))
        monkeypatch.setattr(environment, "run", lambda *command: ran.append(str(command[2])))
        base = Path(sys.executable)
        for lock, expected in (("a==1", True), ("a==1", False), ("a==2", True)):
            ran.clear()
            (tmp_path / "lock").write_text(lock, encoding="utf-8")
            environment.provide(base)
            assert ("sync" in ran) == expected

    @pytest.mark.parametrize("module", ["prefect.engine", "sqlalchemy", "seawall.archive.client"])
    def test_what_starts_often_is_compiled_also_for_accounts_that_cannot_write_it_down(self, module: str) -> None:
        found = importlib.util.find_spec(module)
        assert found is not None
        assert found.origin is not None
        assert Path(importlib.util.cache_from_source(found.origin)).exists()

    def test_an_interrupted_set_up_is_done_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_command: object) -> None:
            raise Refused("the index does not answer")

        monkeypatch.setattr(environment, "_STAMP", tmp_path / "stamp")
        monkeypatch.setattr(environment, "provide_uv", lambda _base: Path("uv"))
        monkeypatch.setattr(environment, "run", fails)
        (tmp_path / "stamp").write_text("of an older lock", encoding="utf-8")
        with pytest.raises(Refused):
            environment.provide(Path(sys.executable))
        assert not (tmp_path / "stamp").exists()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers under another account")
    def test_a_closed_directory_on_the_way_is_named(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        (closed / "checkout").mkdir(parents=True)
        for directory in (*reversed(tmp_path.parents), tmp_path):
            if str(directory).startswith(str(Path(tmp_path.root) / "tmp" / "pytest")):
                directory.chmod(0o755)
        refuse_closed(closed / "checkout", server_account())
        closed.chmod(0o700)
        with pytest.raises(Refused, match=re.escape(f"chmod o+x '{closed}'")):
            refuse_closed(closed / "checkout", server_account())

    def test_a_package_that_may_not_be_installed_is_named_with_the_command(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        absent = debian.Package("no-such-package", "no-such-program", "nothing")
        monkeypatch.setattr(debian, "_privilege", lambda: None)
        with pytest.raises(Refused, match="apt-get install --no-install-recommends no-such-package"):
            debian.provide((absent,))
