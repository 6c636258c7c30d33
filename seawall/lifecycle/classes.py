"""The vendors' storage classes: which answer at once, how long each charges for at least, and how cold each is.

Sources: Amazon S3 user guide, "Understanding and managing Amazon S3 storage classes" and "Transitioning objects";
Azure Blob Storage, "Access tiers for blob data"; Google Cloud Storage, "Storage classes".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from seawall.errors import SettingsError
from seawall.settings import RepositorySettings

NONE = ("none",)


class Vendor(StrEnum):
    """Who defines the form of the rules."""

    S3 = "s3"
    AZURE = "azure"
    GCS = "gcs"


@dataclass(frozen=True, slots=True)
class StorageClass:
    """One class.

    Args:
        least_days: for so many days the vendor charges at least, however early an object leaves.
        earliest_days: the youngest age at which the vendor lets an object move here.
        online: whether an object can be read at once; else it must be thawed first, which takes hours.
    """

    name: str
    least_days: int = 0
    earliest_days: int = 0
    online: bool = True


# Each vendor's, warmest first.
CLASSES: Mapping[Vendor, tuple[StorageClass, ...]] = {
    Vendor.S3: (
        StorageClass("STANDARD"),
        StorageClass("INTELLIGENT_TIERING"),
        StorageClass("STANDARD_IA", 30, 30),
        StorageClass("ONEZONE_IA", 30, 30),
        StorageClass("GLACIER_IR", 90),
        StorageClass("GLACIER", 90, online=False),
        StorageClass("DEEP_ARCHIVE", 180, online=False),
    ),
    Vendor.AZURE: (
        StorageClass("Hot"),
        StorageClass("Cool", 30),
        StorageClass("Cold", 90),
        StorageClass("Archive", 180, online=False),
    ),
    Vendor.GCS: (
        StorageClass("STANDARD"),
        StorageClass("NEARLINE", 30),
        StorageClass("COLDLINE", 90),
        StorageClass("ARCHIVE", 365),
    ),
}

_USUAL = {
    Vendor.S3: ("STANDARD_IA", "GLACIER_IR"),
    Vendor.AZURE: ("Cool", "Cold"),
    Vendor.GCS: ("NEARLINE", "COLDLINE"),
}


def vendor_of(url: str) -> Vendor | None:
    """Whose rules a storage URL's place knows; None where there are no such rules."""
    return {"s3": Vendor.S3, "azure": Vendor.AZURE, "gs": Vendor.GCS}.get(url.partition(":")[0])


def by_name(vendor: Vendor, name: str) -> StorageClass | None:
    """The vendor's class of that name, in whichever case."""
    return next((one for one in CLASSES[vendor] if one.name.lower() == name.lower()), None)


def ladder(vendor: Vendor, settings: RepositorySettings) -> tuple[StorageClass, ...]:
    """The classes that old data of a location may move to, warmest first.

    Without a choice these are the vendor's online classes; for a service at an endpoint of its own, which need not know
    them, none.

    Raises:
        SettingsError: a class that was named does not exist, cannot be read at once, or is not in order.
    """
    if settings.cold_classes == NONE:
        return ()
    own_service = vendor is not Vendor.AZURE and bool(settings.endpoint)
    names = settings.cold_classes or (() if own_service else _USUAL[vendor])
    chosen = [_chosen(vendor, name) for name in names]
    order = [CLASSES[vendor].index(one) for one in chosen]
    if order != sorted(set(order)):
        raise SettingsError("cold_classes must name each class once, the warmest first")
    return tuple(chosen)


def _chosen(vendor: Vendor, name: str) -> StorageClass:
    found, colder = by_name(vendor, name), CLASSES[vendor][1:]
    if found is None or found not in colder:
        known = ", ".join(_names(colder))
        raise SettingsError(f"cold_classes: {vendor.value} has no colder class {name!r} (known: {known})")
    if not found.online:
        raise SettingsError(
            f"cold_classes: {name} must be thawed before it can be read, so nothing could be restored or verified",
            hint=f"Choose among {', '.join(_names(one for one in colder if one.online))}.",
        )
    return found


def _names(classes: Iterable[StorageClass]) -> list[str]:
    return [one.name for one in classes]
