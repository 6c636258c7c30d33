"""A location's own plan, what its bucket has, and bringing the one to the other.

A vendor's configuration is replaced as a whole, so rules that are not Seawall's are read first and kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from seawall.audit import AuditLog
from seawall.errors import SettingsError, StorageDenied, UsageError
from seawall.lifecycle.classes import StorageClass, Vendor, ladder, vendor_of
from seawall.lifecycle.compare import Difference, compare
from seawall.lifecycle.forms import document, gcs_rules, parsed
from seawall.lifecycle.rules import Action, LifecyclePlan, Rule, SourcePolicy, plan
from seawall.prices import PriceTable
from seawall.prices import load as load_prices
from seawall.retention import policy_for
from seawall.settings import PRIMARY, RepositorySettings, Settings
from seawall.storage.access import bucket_place
from seawall.storage.base import Storage
from seawall.storage.rules import ruled

# Its tool prints and takes the rules; the credential for blobs does neither.
_AZURE = "the rules of an Azure account are not reached with a credential for blobs"
_AZURE_HINT = "az storage account management-policy show|create --account-name ACCOUNT --resource-group GROUP"


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a bucket has beside a plan.

    Args:
        unknown: why its rules could not be read; empty if they were.
        found: the vendor's document.
        configured: the rules in it that are in force.
    """

    plan: LifecyclePlan
    differences: tuple[Difference, ...] = ()
    unknown: str = ""
    found: Mapping[str, Any] | None = None
    configured: tuple[Rule, ...] = ()


def plan_for(settings: Settings, location: str) -> LifecyclePlan | None:
    """The rules for a location, from the policies of the sources that have copies there; None where none can be.

    Raises:
        SettingsError: there is no such location, or `cold_classes` are not the vendor's.
    """
    storage = settings.location(location).storage
    vendor = vendor_of(storage.url)
    if vendor is None:
        return None
    place = bucket_place(storage.url, storage.url.partition(":")[0])
    # Azure's rules are the account's, and their prefixes begin with the container.
    root = f"{place.bucket}/{place.prefix}" if vendor is Vendor.AZURE else place.prefix
    users = [one for one in settings.sources.values() if location == PRIMARY or location in one.mirrors]
    policies = [
        SourcePolicy(one.name, policy_for(settings, one.name, location), one.full_after_days)
        for one in users
        if one.full_after_days
    ]
    found = plan(vendor, root, _charged(ladder(vendor, storage), settings, storage), policies)
    endless = [one.name for one in users if not one.full_after_days]
    notes = [f"{name}: nothing is moved; full_after_days = 0 lets a chain be of any length" for name in endless]
    return LifecyclePlan(found.vendor, found.root, found.mark, found.rules, (*notes, *found.notes))


def _charged(
    classes: tuple[StorageClass, ...], settings: Settings, storage: RepositorySettings
) -> tuple[StorageClass, ...]:
    """The classes with the least spans of the user's own contract, where the price table names longer ones."""
    table = table_of(settings, storage)
    if table is None:
        return classes
    prices = {name.lower(): price.least_days for name, price in table.classes.items()}
    return tuple(replace(one, least_days=max(one.least_days, prices.get(one.name.lower(), 0))) for one in classes)


def table_of(settings: Settings, storage: RepositorySettings) -> PriceTable | None:
    """The price table of a location; None where none is named.

    Raises:
        SettingsError: the file or the table is not there.
    """
    if not storage.prices:
        return None
    if settings.server.price_file is None:
        raise SettingsError(f"prices = {storage.prices!r}, but [server] names no price_file")
    tables = load_prices(settings.server.price_file)
    if storage.prices not in tables:
        raise SettingsError(f"there is no table {storage.prices!r} in {settings.server.price_file}")
    return tables[storage.prices]


def inspect(planned: LifecyclePlan, storage: Storage, exported: Mapping[str, Any] | None = None) -> Inspected:
    """Compare what a bucket has with a plan.

    Args:
        exported: the configuration as the vendor's tool printed it, instead of asking the bucket.

    Raises:
        StorageError: the bucket does not answer.
    """
    if exported is None:
        bucket = ruled(storage)
        if bucket is None:
            return Inspected(planned, unknown=_AZURE)
        try:
            exported = bucket.lifecycle()
        except StorageDenied as error:
            return Inspected(planned, unknown=error.message)
    there = parsed(planned.vendor, exported)
    return Inspected(planned, compare(planned, there), found=exported, configured=there)


def merged(planned: LifecyclePlan, found: Mapping[str, Any]) -> dict[str, Any]:
    """The vendor's document with the planned rules in place of earlier ones of Seawall's, and all others kept. Pure."""
    made = document(planned.vendor, planned.rules)
    if planned.vendor is Vendor.S3:
        others = [one for one in found["Rules"] if not str(one.get("ID", "")).startswith(planned.mark)]
        return {"Rules": [*others, *made["Rules"]]}
    if planned.vendor is Vendor.GCS:
        others = [one for one in gcs_rules(found) if not _is_own(planned, one)]
        return {"lifecycle": {"rule": [*others, *made["lifecycle"]["rule"]]}}
    raise UsageError(_AZURE, hint=_AZURE_HINT)


def _is_own(planned: LifecyclePlan, raw: Mapping[str, Any]) -> bool:
    """Whether a rule of a bucket whose rules have no names does what only a plan of Seawall's does."""
    rules = parsed(Vendor.GCS, {"rule": [raw]})
    if not rules:
        return False
    if all(any(rule.same_as(wanted) for wanted in planned.rules) for rule in rules):
        return True
    backups = f"{planned.root}sources/"
    return all(rule.action is Action.MOVE and rule.suffixes and rule.prefix.startswith(backups) for rule in rules)


def apply(
    planned: LifecyclePlan, storage: Storage, audit: AuditLog, location: str, *, actor: str, now: datetime
) -> Inspected:
    """Give a bucket the planned rules and keep its others; what then still differs.

    Raises:
        UsageError: this vendor's rules cannot be set through the storage.
        StorageDenied: the credentials may not.
    """
    bucket = ruled(storage)
    if bucket is None:
        raise UsageError(_AZURE, hint=_AZURE_HINT)
    wanted = merged(planned, bucket.lifecycle())
    # Rules move and remove data long after this command is over: who set them must be known first.
    details = {rule.id: f"{rule.action.value} {rule.days} {rule.prefix} {rule.storage_class}" for rule in planned.rules}
    audit.append(actor, "lifecycle", location, details, now=now)
    bucket.set_lifecycle(wanted)
    return inspect(planned, storage)


def wanted(settings: Settings, location: str) -> LifecyclePlan:
    """As `plan_for`, for those who ask for a plan.

    Raises:
        SettingsError: the location is not in a bucket.
    """
    found = plan_for(settings, location)
    if found is None:
        raise SettingsError(
            f"{location} is not in a bucket; only S3, Azure and Google Cloud Storage have lifecycle rules",
            hint="Elsewhere `seawall expire` is all that is needed.",
        )
    return found
