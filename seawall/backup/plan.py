"""What a backup will be: which kind, on which prior, under which label, and why a full one where another was asked for.

Pure but for the reading of heads: a plan can be shown, tested and audited before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from seawall import processors
from seawall.model import BackupKind, BackupLabel, Cluster, CopyMode, Head, Health, SealingMode
from seawall.repository import SourceArea
from seawall.settings import SourceSettings


@dataclass(frozen=True, slots=True)
class BackupPlan:
    """What a backup will be, before anything was written.

    Args:
        workers: how many compress and seal side by side.
        adapts: whether there may be more writers than that while these wait.
        asked: the kind that was asked for; `kind` is what will be taken, and `reason` says why if they differ.
        prior: the backup that it builds on; None for a full one.
        newest_full: the one that a differential would build on, where the heads were read.
    """

    source: str
    label: BackupLabel
    asked: BackupKind
    kind: BackupKind
    reason: str
    mode: CopyMode
    cluster: Cluster
    workers: int
    adapts: bool
    prior: Head | None = None
    newest_full: Head | None = None

    @property
    def is_told(self) -> bool:
        """Whether the server is asked to send nothing but what changed since the prior."""
        return self.mode is CopyMode.STREAM and self.prior is not None and self.cluster.summarizes_wal

    def as_full(self, reason: str) -> BackupPlan:
        """The same, but for a full backup that stands in for what cannot be taken."""
        return replace(
            self,
            kind=BackupKind.FULL,
            prior=None,
            label=BackupLabel(self.label.begun_at),
            reason=f"a full backup stands in: {reason}",
        )


def plan(
    source: SourceSettings,
    area: SourceArea,
    cluster: Cluster,
    kind: BackupKind,
    *,
    now: datetime,
    sealing: SealingMode | None = None,
) -> BackupPlan:
    """Decide kind, prior and label.

    Args:
        sealing: the mode that it will be sealed in; that of the prior when omitted.

    Raises:
        ClockWentBackwards: a newer label exists already.
    """
    full = BackupPlan(
        source.name,
        _free_label(area, now),
        kind,
        BackupKind.FULL,
        "",
        source.mode,
        cluster,
        source.workers or processors.available(),
        adapts=source.workers == 0,
    )
    if kind is BackupKind.FULL:
        return full
    # A head that cannot be read keeps no backup from being taken; only nothing builds on it.
    heads, _ = area.readable_heads()
    prior = choose_prior(heads, kind)
    limit = timedelta(days=source.full_after_days)
    reason = why_full(prior, cluster, now=now, sealing=sealing, full_after=limit)
    if prior is None or reason:
        return full.as_full(reason)
    label = BackupLabel(full.label.begun_at, kind, base_of(prior))
    return replace(full, kind=kind, prior=prior, label=label, newest_full=choose_prior(heads, BackupKind.DIFFERENTIAL))


def choose_prior(heads: Sequence[Head], kind: BackupKind) -> Head | None:
    """The newest good set for an incremental, the newest good full one for a differential; a degraded one if none is.

    Args:
        heads: all committed sets that are not marked, in any order.
    """
    usable = [head for head in heads if kind is BackupKind.INCREMENTAL or head.kind is BackupKind.FULL]
    good = [head for head in usable if head.health is Health.GOOD]
    return max(good or usable, key=lambda head: head.label.begun_at, default=None)


def base_of(prior: Head) -> datetime:
    """When the full backup began that a chain rests on."""
    return prior.label.base_begun_at or prior.label.begun_at


def why_full(
    prior: Head | None, cluster: Cluster, *, now: datetime, sealing: SealingMode | None, full_after: timedelta
) -> str:
    """Why nothing can build on a prior; empty where something can.

    Args:
        full_after: how old a chain's full backup may be; zero is no limit.
    """
    if prior is None:
        return "there is no backup to build on"
    was, is_ = prior.cluster, cluster.identity
    checksums = {True: "with", False: "without"}
    reasons = (
        (was.system_identifier != is_.system_identifier, "the cluster has another system identifier than the prior's"),
        (
            was.major_version != is_.major_version,
            f"the cluster was upgraded from PostgreSQL {was.major_version} to {is_.major_version}",
        ),
        (
            prior.timeline != cluster.timeline,
            f"the server was promoted: it is on timeline {cluster.timeline}, {prior.label} on {prior.timeline}",
        ),
        (
            prior.checksums != cluster.checksums,
            f"{prior.label} was taken {checksums[prior.checksums]} page checksums, now there are "
            + ("some" if cluster.checksums else "none"),
        ),
        (
            sealing is not None and prior.sealing is not sealing,
            f"{prior.label} is sealed in mode {prior.sealing.value}"
            + (f", this backup will be in {sealing.value}" if sealing else ""),
        ),
        (prior.health is not Health.GOOD, f"{prior.label} has pages with wrong checksums"),
        (
            bool(full_after) and now - base_of(prior) > full_after,
            f"the chain began more than {full_after.days} days ago, at {base_of(prior).isoformat()}",
        ),
    )
    return next((reason for applies, reason in reasons if applies), "")


def _free_label(area: SourceArea, now: datetime) -> BackupLabel:
    newest = max(area.begun(), key=lambda known: known.begun_at, default=None)
    label = BackupLabel.after(newest, now)
    # An attempt that failed within this second may have come no further than its key, which no listing of sets shows.
    used = {key.partition("-")[0] for key in area.keychain.ids()}
    while str(label).partition("-")[0] in used:
        label = BackupLabel.after(label, label.begun_at + timedelta(seconds=1))
    return label
