"""`python -m campaigns`: damage, kills and faults in large numbers, and what was found.

Each campaign has a seed, so that whoever repeats it meets the same trials; the exit code is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from campaigns import agents, damage, faults, fuzz, kill, live, lives, network, power, sample, scenes, script, victims
from campaigns.sample import QuickRing
from seawall.errors import SeawallError
from seawall.model import Compression, CopyMode, SealingMode
from seawall.postgres.binaries import Account
from tools.storage_servers import Servers

# What is damaged in mode openpgp goes through gpg, which takes some tens of milliseconds each time.
_SHARE = {SealingMode.NONE: 0.45, SealingMode.AES_256_GCM: 0.45, SealingMode.OPENPGP: 0.1}
_CODECS = {
    SealingMode.NONE: (Compression.NONE, Compression.LZ4),
    SealingMode.AES_256_GCM: (Compression.ZSTD, Compression.LZ4),
    SealingMode.OPENPGP: (Compression.GZIP,),
}
Figures = dict[str, object]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m campaigns", description=__doc__)
    parser.add_argument("which", nargs="*", choices=[*_CAMPAIGNS, []], help="default: all of them")
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--trials", type=int, default=10_000, help="damages, inputs of each parser (default: 10000)")
    parser.add_argument("--points", type=int, default=60, help="kills of each verb at most (default: 60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    figures: Figures = {"seed": options.seed}
    with scenes.workplace() as place:
        scenes.make_keys(place)
        for name in options.which or _CAMPAIGNS:
            begin = time.monotonic()
            figures[name] = _CAMPAIGNS[name](place, options)
            print(f"{name} took {time.monotonic() - begin:.0f} s\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if any(found["faults"] for found in figures.values() if isinstance(found, dict)) else 0


def run_damage(place: Path, options: argparse.Namespace) -> Figures:
    found, total = list[str](), dict.fromkeys(damage.VERDICTS, 0)
    by_mode: dict[str, dict[str, int]] = {}
    unnoticed: Counter[str] = Counter()
    with QuickRing(place / "ring") as ring:
        for mode, codecs in _CODECS.items():
            for codec in codecs:
                number = round(options.trials * _SHARE[mode] / len(codecs))
                into = place / f"damage-{mode.value}-{codec.value}"
                into.mkdir()
                made = sample.make(ring, mode, codec, options.seed)
                tally = damage.run(made, ring, into, number, options.seed)
                counts = {verdict: tally.total(verdict) for verdict in damage.VERDICTS}
                by_mode[f"{mode.value}, {codec.value}"] = counts
                unnoticed += tally.unnoticed_changes()
                total = {verdict: total[verdict] + counts[verdict] for verdict in total}
                found += tally.examples
                _print_damage(f"{mode.value}, {codec.value}", tally)
    print(f"damage: {sum(total.values())} trials, {total}; changed bytes that nobody noticed: {dict(unnoticed)}")
    return {"total": total, "by_mode": by_mode, "unnoticed_changes": dict(unnoticed), "faults": found}


def _print_damage(title: str, tally: damage.Tally) -> None:
    print(f"\ndamage in a repository sealed as {title}: {tally.total()} trials")
    for column in (0, 1):
        print(f"{'':<22}" + "".join(f"{verdict:>10}" for verdict in damage.VERDICTS))
        for row in sorted({key[column] for key in tally.counts}):
            print(f"{row:<22}" + "".join(f"{tally.total(verdict, row):>10}" for verdict in damage.VERDICTS))
    print(f"changed bytes that nobody noticed: {tally.unnoticed_changes() or 'none'}")
    print(f"noticed first by: {dict(tally.readers.most_common())}")
    print(f"trials in which every backup was restored right all the same: {tally.restored}")
    for line in sorted(set(tally.examples)):
        print(f"  {line}")


def run_script(place: Path, options: argparse.Namespace) -> Figures:
    found, ends = list[str](), Counter[str]()
    number = max(options.trials // 10, 1)
    with QuickRing(place / "ring") as ring:
        for mode in SealingMode:
            into = place / f"script-{mode.value}"
            into.mkdir()
            tally = script.run(sample.make(ring, mode, Compression.LZ4, options.seed), ring, into, number, options.seed)
            print(f"recover.py on {number} damaged repositories sealed as {mode.value}: {dict(tally.ends)}")
            ends, found = ends + tally.ends, found + tally.wrong
    for line in found:
        print(f"  {line}")
    return {"ends": dict(ends), "faults": found}


def run_kill(place: Path, options: argparse.Namespace) -> Figures:
    tally = kill.Tally()
    victims.import_worker()
    with QuickRing(place / "ring") as ring:
        for mode in (SealingMode.AES_256_GCM, SealingMode.NONE):
            base, made = scenes.still(place / f"still-{mode.value}", place, mode, options.seed)
            life = kill.StillLife(place, base, made, ring)
            for verb in life.verbs():
                _timed(verb, partial(life.kill, verb, options.points, tally), tally)
            if mode is SealingMode.AES_256_GCM:
                _timed("agent", partial(agents.Archiving(place, base, made, ring).kill, options.points, tally), tally)
        with scenes.live(place / "live", place, SealingMode.AES_256_GCM) as (scene, instance):
            beside = live.Live(scene, instance, ring)
            for copy_mode in CopyMode:
                _timed(copy_mode.value, partial(beside.kill_backups, copy_mode, options.points, tally), tally)
            _timed("incremental", partial(beside.kill_incrementals, options.points, tally), tally)
            _timed("receiver", partial(beside.kill_receivers, options.points, tally), tally)
            _timed("worker", partial(beside.kill_workers, options.points, tally), tally)
            _timed("PostgreSQL", partial(beside.kill_servers, max(options.points // 6, 2), tally), tally)
            wrong = list(beside.start_restored(Account.for_servers()))
    _print_kill(tally)
    return {"kills": tally.by_verb(), "boundaries": dict(tally.boundaries), "faults": tally.faults + wrong}


def run_runs(place: Path, options: argparse.Namespace) -> Figures:
    from campaigns import runs  # noqa: PLC0415 - each victim's process imports this module anew; Prefect takes seconds

    tally = kill.Tally()
    with (
        QuickRing(place / "ring") as ring,
        scenes.live(place / "runs", place, SealingMode.AES_256_GCM) as (scene, instance),
        runs.stack_at(place / "stack") as (stack, client),
    ):
        beside = live.Live(scene, instance, ring)
        killer = runs.Runs(beside, stack, client)
        _timed("runs", partial(killer.kill_each, options.points, tally), tally)
        wrong = list(beside.start_restored(Account.for_servers()))
    _print_kill(tally)
    seconds = sorted(killer.over_seconds)
    if seconds:
        print(f"known to be over after {seconds[len(seconds) // 2]:.1f} s (median), {seconds[-1]:.1f} s at most")
    return {"kills": tally.by_verb(), "boundaries": dict(tally.boundaries), "faults": tally.faults + wrong}


def _timed(what: str, do: Callable[[], None], tally: kill.Tally) -> None:
    """Kill one verb, and say how far that is; what ended it is one more thing that was found."""
    begin = time.monotonic()
    try:
        do()
    except (RuntimeError, TimeoutError, SeawallError) as error:
        tally.add(what, 0, "the campaign itself", [f"{type(error).__name__}: {error}"])
    seconds = time.monotonic() - begin
    far = f"{len(tally.kills)} kills, {len(tally.faults)} faults"
    print(f"  {what}: {far}, {seconds:.0f} s", file=sys.stderr, flush=True)


def _print_kill(tally: kill.Tally) -> None:
    print(f"\n{'killed':<28}{'boundaries':>11}{'kills':>7}{'faults':>8}")
    for verb, kills in tally.by_verb().items():
        faulty = sum(1 for one in tally.kills if one.verb == verb and one.faults)
        print(f"{verb:<28}{tally.boundaries[verb]:>11}{kills:>7}{faulty:>8}")
    print(f"{len(tally.kills)} kills at {tally.forms()} kinds of boundary")
    for fault in tally.faults:
        print(f"  {fault}")


def run_power(place: Path, options: argparse.Namespace) -> Figures:
    tally = power.Tally()
    with QuickRing(place / "ring") as ring:
        base, made = scenes.still(place / "disk", place, SealingMode.AES_256_GCM, options.seed)
        life = kill.StillLife(place, base, made, ring)
        for verb in life.verbs():
            power.StillDisk(life, ring, options.seed).cut(verb, options.points, tally)
        power.ArchivingDisk(agents.Archiving(place, base, made, ring), options.seed).cut(options.points, tally)
        with scenes.live(place / "disk-live", place, SealingMode.AES_256_GCM) as (scene, instance):
            power.ReceivingDisk(scene, instance, ring, options.seed).cut(options.points, tally)
    print(f"\n{'power cut under':<28}{'steps':>7}{'cuts':>7}{'faults':>8}")
    for verb, cuts in tally.by_verb().items():
        faulty = sum(1 for cut in tally.cuts if cut.verb == verb and cut.faults)
        print(f"{verb:<28}{tally.steps[verb]:>7}{cuts:>7}{faulty:>8}")
    for fault in tally.faults:
        print(f"  {fault}")
    return {"cuts": tally.by_verb(), "steps": dict(tally.steps), "faults": tally.faults}


def run_faults(place: Path, options: argparse.Namespace) -> Figures:
    with QuickRing(place / "ring") as ring:
        tally = faults.run(ring, options.seed, (SealingMode.NONE, SealingMode.AES_256_GCM))
    tally.print()
    return {"trials": dict(tally.trials), "faults": tally.wrong}


def run_network(place: Path, options: argparse.Namespace) -> Figures:
    with QuickRing(place / "ring") as ring, Servers(place) as servers:
        tally = network.run(ring, servers["s3"], options.seed, options.points)
    tally.print()
    return {"trials": dict(tally.trials), "faults": tally.wrong}


def run_lives(place: Path, options: argparse.Namespace) -> Figures:
    number = max(options.trials // 100, 1)
    with QuickRing(place / "ring") as ring:
        tally = lives.run(ring, place, options.seed, range(number))
    tally.print()
    return {"lives": tally.lives, "steps": sum(tally.ends.values()), "faults": tally.wrong}


def run_fuzz(place: Path, options: argparse.Namespace) -> Figures:
    with QuickRing(place / "ring") as ring:
        tally = fuzz.run(ring, options.seed, options.trials)
    print(f"\nfuzz: {tally.total()} inputs")
    tally.print()
    return {"inputs": tally.total(), "faults": tally.wrong}


_CAMPAIGNS: dict[str, Callable[[Path, argparse.Namespace], Figures]] = {
    "damage": run_damage,
    "script": run_script,
    "kill": run_kill,
    "runs": run_runs,
    "power": run_power,
    "faults": run_faults,
    "network": run_network,
    "lives": run_lives,
    "fuzz": run_fuzz,
}

if __name__ == "__main__":
    sys.exit(main())
