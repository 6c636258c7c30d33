"""The command line without a server: help, JSON, exit codes, and bad input."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seawall import cli
from seawall.audit import AuditLog
from seawall.catalog import Logbook
from seawall.storage.local import LocalStorage

Run = Callable[..., Any]

# The least that each verb wants.
LEAST: dict[str, list[str]] = {
    "init": [],
    "check": [],
    "backup": [],
    "wal": ["status"],
    "list": [],
    "info": [],
    "verify": [],
    "restore": ["shop", "--into", "/nowhere/else"],
    "restore-test": [],
    "location": ["list"],
    "mirror": [],
    "expire": [],
    "hold": ["list"],
    "keys": ["list"],
    "catalog": ["check"],
    "repository": ["repair"],
    "audit": [],
    "up": [],
}
BAD_NAMES = ["../other", "a/b", "a b", "größe", ".", "..", "", "A", "x" * 64, "a\nb", "x\udcff"]


def explained(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, str | None]]:
    """Every command and argument below a parser with its help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from ((f"{path} {choice.dest}", choice.help) for choice in action._choices_actions)
            for name, command in action.choices.items():
                yield from explained(command, f"{path} {name}")
        else:
            yield f"{path} {'/'.join(action.option_strings) or action.dest}", action.help


class TestEveryVerb:
    def test_is_tried_here(self) -> None:
        assert set(LEAST) == set(cli.VERBS)

    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_explains_itself(self, seawall: Run, verb: str) -> None:
        done = seawall(verb, "--help")
        assert done.code == 0
        assert f"usage: seawall {verb}" in done.out
        assert "--json" in done.out
        assert "--config" in done.out

    def test_explains_each_of_its_arguments(self) -> None:
        silent = [words for words, text in explained(cli.parser(), "seawall") if not (text or "").strip()]
        assert not silent, "the help says nothing of these"

    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_says_in_json_that_there_are_no_settings(self, seawall: Run, verb: str, tmp_path: Path) -> None:
        done = seawall(verb, *LEAST[verb], "--config", tmp_path / "none.toml", "--json")
        assert (done.code, done.error["code"]) == (2, "settings")
        assert "seawall init" in done.error["hint"]

    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_says_in_json_what_it_does_not_understand(self, seawall: Run, verb: str) -> None:
        done = seawall(verb, *LEAST[verb], "--json", "--no-such-option")
        assert (done.code, done.error["code"]) == (2, "usage")
        assert "--no-such-option" in done.error["message"]

    @pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb not in ("init", "up")])
    def test_says_in_json_that_there_is_no_repository(self, seawall: Run, verb: str, plain: Path) -> None:
        for identity in (plain.parent / "repository").glob("seawall*.json"):
            identity.unlink()
        done = seawall(verb, *LEAST[verb], "--config", plain, "--json")
        # What locations there are stands in the settings.
        served_without = {"keys": 0, "catalog": 0, "location": 0}
        assert done.code == served_without.get(verb, 31), done.out
        assert done.json["ok"] is (done.code == 0)

    def test_tells_people_message_and_hint_on_standard_error(self, seawall: Run, tmp_path: Path) -> None:
        done = seawall("list", "--config", tmp_path / "none.toml")
        assert done.out == ""
        assert done.err.startswith("seawall: no settings file at ")
        assert "\n  hint: " in done.err


class TestOptions:
    @pytest.mark.parametrize(
        ("arguments", "meant"),
        [
            (["restore", "shop", "--into", "/nowhere", "--name", "x"], "Did you mean --to-name? "),
            (["restore", "shop", "--into", "/nowhere", "--dryrun"], "Did you mean --dry-run? "),
            (["restore", "shop", "--into", "/nowhere", "surplus"], ""),
        ],
    )
    def test_an_argument_that_a_verb_does_not_know_gets_what_was_meant_and_that_verbs_help(
        self, seawall: Run, arguments: list[str], meant: str
    ) -> None:
        done = seawall(*arguments)
        assert done.code == 2
        assert f"unrecognized arguments: {' '.join(arguments[4:])}" in done.err
        assert f"hint: {meant}See `seawall restore --help`." in done.err

    @pytest.mark.parametrize(
        "arguments", [[], ["nonsense"], ["lis"], ["keys"], ["keys", "burn"], ["--nonsense", "list"]]
    )
    def test_a_usage_error_is_one_json_object(self, seawall: Run, arguments: list[str]) -> None:
        done = seawall(*arguments, "--json")
        assert (done.code, done.error["code"]) == (2, "usage")

    @pytest.mark.parametrize(
        "order",
        [
            "--config {c} --json keys list",
            "keys --config {c} --json list",
            "keys list --json --config {c}",
            "--json keys --config {c} list",
            "keys --json list --config {c}",
        ],
    )
    def test_the_common_options_may_stand_anywhere(self, seawall: Run, plain: Path, order: str) -> None:
        done = seawall(*order.format(c=plain).split())
        assert done.code == 0
        assert done.json["keys"] == []

    @pytest.mark.parametrize("wrong", ["70000", "x", "-1", ""])
    def test_a_port_that_is_none_is_refused(self, seawall: Run, plain: Path, wrong: str) -> None:
        done = seawall("restore", "shop", "--into", "/nowhere/else", f"--port={wrong}", "--config", plain, "--json")
        assert (done.code, done.error["code"]) == (2, "usage")
        assert "--port" in done.error["message"]

    def test_a_settings_file_may_be_named_like_a_verb(
        self, seawall: Run, plain: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(plain.parent)
        plain.rename(plain.parent / "list")
        assert seawall("--config", "list", "expire", "--dry-run", "--json").json["dry_run"] is True

    def test_the_environment_names_the_settings(
        self, seawall: Run, plain: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SEAWALL_CONFIG", str(plain))
        assert seawall("list", "--json").json["backups"] == []

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("[repository]\nurl = '/r'\nspeed = 9", "'speed'"),
            ("[repositry]\nurl = '/r'", "[repositry]"),
            ("[sealing]\nmode = 'rot13'", "rot13"),
            ("[server]\nrpo_minutes = -1", "-1"),
            ("[server]\nwork_directory = 'here'", "absolute"),
            ("[sources.'a/b']\nconninfo = ''", "'a/b'"),
            ("not toml", "seawall.toml"),
        ],
    )
    def test_a_wrong_setting_is_named(self, seawall: Run, tmp_path: Path, text: str, named: str) -> None:
        path = tmp_path / "seawall.toml"
        path.write_text(text)
        done = seawall("list", "--config", path, "--json")
        assert done.code == 2
        assert named in done.error["message"]

    def test_a_password_in_conninfo_is_refused_and_not_repeated(self, seawall: Run, plain: Path) -> None:
        plain.write_text(plain.read_text().replace("user=nobody", "user=nobody password=hunter2"))
        for verb in ("backup", "check"):
            done = seawall(verb, "--config", plain, "--json")
            assert done.code == 2
            assert "passfile" in done.out
            assert "hunter2" not in done.out + done.err


class TestNames:
    @pytest.mark.parametrize("name", BAD_NAMES)
    @pytest.mark.parametrize("verb", ["list", "info", "verify", "expire", "wal", "hold", "restore", "check", "backup"])
    def test_a_name_that_storage_cannot_carry_is_refused(
        self, seawall: Run, plain: Path, verb: str, name: str, tree: Run
    ) -> None:
        before = tree(plain.parent)
        arguments = {
            "wal": ["wal", "status", name],
            "hold": ["hold", "list", name],
            "restore": ["restore", name, "--into", str(plain.parent / "new")],
        }.get(verb, [verb, name])
        done = seawall(*arguments, "--config", plain, "--json")
        assert done.code == 2, done.out
        assert done.error["code"] in ("name-refused", "settings")
        assert tree(plain.parent) == before

    @pytest.mark.parametrize("name", ["../other", "a/b", "a b", "größe"])
    def test_init_refuses_it_before_anything_is_made(self, seawall: Run, tmp_path: Path, name: str) -> None:
        done = seawall("init", "--directory", tmp_path / "new", "--source", name, "--json")
        assert (done.code, done.error["code"]) == (2, "name-refused")
        assert not (tmp_path / "new").exists()

    def test_a_source_that_does_not_exist_is_named_with_those_that_do(self, seawall: Run, plain: Path) -> None:
        for arguments in (["list", "shpo"], ["verify", "shpo"], ["backup", "shpo"], ["hold", "list", "shpo"]):
            done = seawall(*arguments, "--config", plain, "--json")
            assert done.code == 2
            assert "shpo" in done.error["message"]
            assert "shop" in done.error["message"]

    @pytest.mark.parametrize("label", ["newest", "../x", "20261301T000000Z-full"])
    def test_a_label_that_is_none_is_refused(self, seawall: Run, plain: Path, label: str) -> None:
        for arguments in (
            ["verify", "shop", label],
            ["info", "shop", label],
            ["expire", "shop", "--undo", label],
            ["hold", "place", "--label", label, "--reason", "r"],
            ["restore", "shop", "--into", str(plain.parent / "new"), "--label", label],
        ):
            assert seawall(*arguments, "--config", plain, "--json").code == 2, arguments


class TestRepository:
    def test_one_of_a_newer_format_is_left_alone(self, seawall: Run, plain: Path, tree: Run) -> None:
        import hashlib

        identity = plain.parent / "repository" / "seawall.json"
        document = json.loads(identity.read_text()) | {"format": 2}
        del document["sha256"]
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        document["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
        identity.chmod(0o640)
        identity.write_text(json.dumps(document, separators=(",", ":")))
        before = tree(identity.parent)
        for verb in ("list", "check", "verify", "expire", "init"):
            done = seawall(verb, "--config", plain, "--json")
            assert (done.code, done.error["code"]) == (32, "format-too-new"), verb
        assert tree(identity.parent) == before

    def test_a_damaged_identity_is_told_from_a_missing_one(self, seawall: Run, plain: Path) -> None:
        for identity in (plain.parent / "repository").glob("seawall*.json"):
            identity.chmod(0o640)
            identity.write_text(identity.read_text().replace('"format":1', '"format":0'))
        assert seawall("list", "--config", plain, "--json").code == 34

    def test_a_lost_identity_stops_nobody_and_is_written_again_from_its_copy(self, seawall: Run, plain: Path) -> None:
        identity = plain.parent / "repository" / "seawall.json"
        before = identity.read_bytes()
        identity.unlink()
        assert seawall("list", "--config", plain, "--json").code == 0
        checks = seawall("check", "--no-switch", "--config", plain, "--json").json["checks"]
        (found,) = [one for one in checks if one["name"] == "repository-identity"]
        assert found["status"] == "warning"
        assert "seawall repository repair" in found["hint"]
        assert seawall("repository", "repair", "--dry-run", "--config", plain, "--json").json["written"] == []
        assert not identity.exists()
        assert seawall("repository", "repair", "--config", plain, "--json").json["written"] == ["seawall.json"]
        assert identity.read_bytes() == before

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_one_that_may_not_be_read_is_named(self, seawall: Run, plain: Path) -> None:
        repository = plain.parent / "repository"
        repository.chmod(0)
        try:
            done = seawall("list", "--config", plain, "--json")
        finally:
            repository.chmod(0o755)
        assert (done.code, done.error["code"]) == (24, "storage-denied")

    def test_a_hold_with_a_bad_end_leaves_nothing_in_the_audit(self, seawall: Run, plain: Path) -> None:
        done = seawall(
            "hold", "place", "--label", "20260101T000000Z-full", "--reason", "r", "--until", "2027-01-01", "--config",
            plain, "--json",
        )  # fmt: skip
        assert done.code == 2
        assert "offset" in done.error["message"]
        assert seawall("hold", "release", "--id", "nothing", "--config", plain, "--json").code == 2
        assert list(AuditLog(LocalStorage(plain.parent / "repository")).records()) == []

    def test_a_mark_that_is_not_there_cannot_be_taken_back(self, seawall: Run, plain: Path) -> None:
        done = seawall("expire", "--undo", "20260101T000000Z-full", "--config", plain, "--json")
        assert done.code == 2
        assert "not marked" in done.error["message"]


class TestInit:
    def test_again_it_changes_nothing(self, seawall: Run, plain: Path, tree: Run) -> None:
        before = tree(plain.parent)
        again = seawall("init", "--directory", plain.parent, "--json")
        assert again.code == 0
        assert {k: v for k, v in tree(plain.parent).items() if "catalog" not in k} == {
            k: v for k, v in before.items() if "catalog" not in k
        }

    def test_again_it_adds_a_source_that_is_new(self, seawall: Run, plain: Path) -> None:
        seawall("init", "--directory", plain.parent, "--source", "books", "--conninfo", "host=elsewhere", "--json")
        done = seawall("init", "--directory", plain.parent, "--source", "books", "--conninfo", "host=other", "--json")
        assert done.code == 0
        text = plain.read_text()
        assert text.count("[sources.books]") == text.count("[sources.shop]") == 1
        assert "host=elsewhere" in text

    def test_makes_what_the_agent_and_receiver_need(self, plain: Path) -> None:
        for name in ("work", "work/spool", "work/agent", "work/scratch"):
            assert (plain.parent / name).stat().st_mode & 0o777 == 0o755

    def test_refuses_a_directory_that_holds_something_else_as_repository(self, seawall: Run, tmp_path: Path) -> None:
        (tmp_path / "repository").mkdir()
        (tmp_path / "repository" / "letter.txt").write_text("dear")
        done = seawall("init", "--directory", tmp_path, "--sealing", "none", "--json")
        assert done.code == 2
        assert "not empty" in done.error["message"]
        assert (tmp_path / "repository" / "letter.txt").read_text() == "dear"

    def test_a_relative_repository_becomes_an_absolute_one(
        self, seawall: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = seawall("init", "--directory", "here", "--sealing", "none", "--repository", "there", "--json")
        assert done.code == 0
        assert (tmp_path / "there" / "seawall.json").is_file()

    def test_says_what_comes_next_as_a_shell_takes_it(self, seawall: Run, tmp_path: Path) -> None:
        site = tmp_path / "my site"
        last = seawall("init", "--directory", site, "--sealing", "none").out.splitlines()[-1]
        commands = last.removeprefix("next: ").split(", then ")
        assert [shlex.split(command)[:2] for command in commands] == [["seawall", "check"], ["seawall", "backup"]]
        assert all(shlex.split(command)[2:] == ["--config", f"{site}/seawall.toml"] for command in commands)

    def test_makes_two_keys_and_lets_only_one_private_part_stay(self, seawall: Run, tmp_path: Path, tree: Run) -> None:
        site = tmp_path / "site"
        made = seawall("init", "--directory", site, "--json").json
        listed = {
            key["role"]: key for key in seawall("keys", "list", "--config", made["config"], "--json").json["keys"]
        }
        assert listed["operations"]["has_secret"] is True
        assert listed["escrow"]["has_secret"] is False
        assert listed["escrow"]["fingerprint"] == made["escrow"] != made["operations"]
        secrets = [site / "keyring.passphrase", site / "escrow/escrow.passphrase", site / "escrow/escrow-secret.asc"]
        assert [oct(path.stat().st_mode & 0o777) for path in secrets] == ["0o600"] * 3
        assert not list(site.rglob(".*.new"))

        # Interrupted before the settings were written: the same keys are used, no second pair is made.
        (site / "seawall.toml").unlink()
        assert seawall("init", "--directory", site, "--json").json["operations"] == made["operations"]
        assert len(seawall("keys", "list", "--config", made["config"], "--json").json["keys"]) == 2

        # Keys of an existing ring serve a second site.
        other = seawall(
            "init", "--directory", tmp_path / "other", "--keyring", site / "keyring",
            "--operations", made["operations"], "--escrow", made["escrow"], "--json",
        )  # fmt: skip
        assert other.code == 0
        assert "operations" not in other.json
        found = seawall("check", "--config", other.json["config"], "--json").json["checks"]
        assert {check["name"]: check["status"] for check in found}["recipients"] == "ok"

        # No output of all this shows a passphrase.
        for path in secrets[:2]:
            for arguments in (["check"], ["keys", "list"], ["keys", "kit"], ["init", "--directory", str(site)]):
                done = seawall(*arguments, *([] if "init" in arguments else ["--config", made["config"]]))
                assert path.read_text().strip() not in done.out + done.err

    def test_a_key_that_the_ring_does_not_have_is_refused_before_settings_are_written(
        self, seawall: Run, tmp_path: Path
    ) -> None:
        names = ["--operations", "A" * 40, "--escrow", "B" * 40]
        done = seawall("init", "--directory", tmp_path / "site", *names, "--json")
        assert (done.code, done.error["code"]) == (41, "key-missing")
        assert not (tmp_path / "site" / "seawall.toml").exists()
        assert seawall("init", "--directory", tmp_path / "site", *names[:2], "--json").code == 2


class TestCheck:
    def test_without_a_server_it_says_what_works_and_what_does_not(self, seawall: Run, plain: Path, tree: Run) -> None:
        before = tree(plain.parent / "repository")
        done = seawall("check", "--config", plain, "--json")
        assert (done.code, done.error["code"]) == (51, "server-unreachable")
        found = {check["name"]: check for check in done.json["checks"]}
        assert found["storage"]["status"] == found["catalog"]["status"] == "ok"
        assert found["server"]["status"] == "failed"
        assert found["server"]["code"] == "server-unreachable"
        assert found["server"]["hint"]
        assert found["archiving"]["status"] == "skipped"
        assert tree(plain.parent / "repository") == before, "the probe is removed"

    def test_the_keeper_of_another_host_that_is_silent_is_named_until_it_is_forgotten(
        self, seawall: Run, plain: Path
    ) -> None:
        def found() -> dict[str, Any]:
            checks = seawall("check", "--config", plain, "--json").json["checks"]
            return next(one for one in checks if one["name"] == "keeper")

        url = f"sqlite:///{plain.parent / 'catalog.db'}"
        with Logbook.open(url) as catalog:
            catalog.beat("far")
        assert found()["status"] == "skipped"
        with sqlite3.connect(plain.parent / "catalog.db") as database:
            database.execute("UPDATE keepers SET beat_at = '2020-02-02 02:02:02'")
        told = found()
        assert told["status"] == "warning"
        assert "the keeper on far gave no sign of life since 2020-02-02 02:02 UTC" in told["sentence"]
        assert seawall("catalog", "forget-keeper", "--config", plain).code == 2
        assert seawall("catalog", "check", "far", "--config", plain).code == 2
        assert seawall("catalog", "forget-keeper", "far", "--config", plain, "--json").json["forgotten"] == "far"
        assert found()["status"] == "skipped"
        with Logbook.open(url) as catalog:
            assert not catalog.has_open_alert("keeper-silent", subject="far")

    def test_without_a_catalog_it_still_checks_the_rest(self, seawall: Run, plain: Path) -> None:
        (plain.parent / "catalog.db").unlink()
        done = seawall("check", "--config", plain, "--json")
        assert (done.code, done.error["code"]) == (91, "catalog-missing")
        assert {c["name"]: c["status"] for c in done.json["checks"]}["storage"] == "ok"

    def test_a_passphrase_that_others_can_read_is_a_failure(self, seawall: Run, plain: Path) -> None:
        passphrase = plain.parent / "keyring.passphrase"
        passphrase.write_text("tell nobody")
        passphrase.chmod(0o644)
        text = plain.read_text().replace('mode = "none"', f'mode = "openpgp"\npassphrase_file = "{passphrase}"')
        plain.write_text(text)
        done = seawall("check", "--config", plain, "--json")
        assert (done.code, done.error["code"]) == (2, "settings")
        assert "chmod 600" in done.error["hint"]
        assert "tell nobody" not in done.out + done.err

    def test_every_check_is_documented(self, seawall: Run, plain: Path) -> None:
        page = (Path(cli.__file__).parents[2] / "docs" / "reference" / "checks.md").read_text(encoding="utf-8")
        made = {check["name"] for check in seawall("check", "--config", plain, "--json").json["checks"]}
        assert {name for name in made if f"| `{name}` |" not in page} == set()
        assert len(made) > 20

    def test_people_see_a_line_for_each_check(self, seawall: Run, plain: Path) -> None:
        done = seawall("check", "--config", plain)
        assert "ok       storage " in done.out
        assert "failed   shop server" in done.out
        assert "hint: " in done.out
        assert done.err.startswith("seawall: ")


class TestProcess:
    def test_a_defect_is_one_json_object_too(self, seawall: Run, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from seawall.cli import listing

        def broken(*_: object) -> None:
            raise ZeroDivisionError("oops")

        monkeypatch.setattr(listing, "_list", broken)
        done = seawall("list", "--config", plain, "--json")
        assert (done.code, done.error["code"]) == (10, "error")
        assert "ZeroDivisionError" in done.error["message"]

    def test_a_directory_that_cannot_be_made_is_an_error_and_no_trace(self, seawall: Run, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        done = seawall("init", "--directory", tmp_path / "file" / "site", "--sealing", "none", "--json")
        assert done.code == 10
        assert str(tmp_path / "file") in done.error["message"]

    def test_a_reader_that_went_away_gets_no_trace(self, plain: Path) -> None:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "seawall", "list", "--config", str(plain)],
            stdout=write, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        os.close(write)
        assert (done.returncode, done.stderr) == (141, "")

    def test_a_terminal_that_knows_only_ascii_gets_everything(self, program: Run, plain: Path) -> None:
        done = program("list", "größe", "--config", plain, PYTHONIOENCODING="ascii")
        assert done.code == 2
        assert "gr\\xf6\\xdfe" in done.err

    def test_up_names_the_default_settings_and_not_an_empty_path(
        self, seawall: Run, plain: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started: list[list[str]] = []
        monkeypatch.setattr(os, "execv", lambda _program, arguments: started.append(arguments))
        monkeypatch.chdir(plain.parent)
        monkeypatch.setenv("SEAWALL_CONFIG", plain.name)
        seawall("up")
        assert started[0][1:] == ["-m", "deployments.stack", "--config", str(plain)]

    def test_numpy_starts_no_threads_of_its_own(self) -> None:
        program = (
            "import os, sys\n"
            "from seawall.__main__ import main\n"
            "sys.argv = ['seawall', 'no-such-verb']\n"
            "try:\n"
            "    main()\n"
            "except SystemExit:\n"
            "    pass\n"
            "import numpy\n"
            "print(len(os.listdir('/proc/self/task')))\n"
        )
        environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        )
        assert done.stdout.split()[-1] == "1"
