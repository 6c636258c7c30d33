"""Rules in the vendors' own forms, and back. Pure.

Sources: Amazon S3 API reference, `LifecycleConfiguration`; Azure Storage resource provider, `ManagementPolicy`; Google
Cloud Storage JSON API, `Buckets: lifecycle`.

What a configured rule says beyond what a `Rule` holds narrows it; it is read as if that were not there, so that a
danger is rather seen where there is none. Rules for objects with tags or a time of their own are left out: Seawall's
have neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from seawall.errors import UsageError
from seawall.lifecycle.classes import Vendor
from seawall.lifecycle.rules import Action, Rule

Document = Mapping[str, Any]


def document(vendor: Vendor, rules: Iterable[Rule]) -> dict[str, Any]:
    """The vendor's own document of these rules, as its tools take it."""
    return _WRITERS[vendor](rules)


def parsed(vendor: Vendor, found: Document) -> tuple[Rule, ...]:
    """The rules in a vendor's document that are in force.

    Raises:
        UsageError: it is not of the vendor's form.
    """
    try:
        return tuple(_READERS[vendor](found))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"this is no lifecycle configuration of {vendor.value}: {type(error).__name__} {error}",
            hint="Give the document as the vendor's own tool prints it.",
        ) from error


# ---- Amazon S3


def _s3(rules: Iterable[Rule]) -> dict[str, Any]:
    return {"Rules": [_s3_rule(rule) for rule in rules]}


def _s3_rule(rule: Rule) -> dict[str, Any]:
    narrow: dict[str, Any] = {"Prefix": rule.prefix}
    if rule.larger_than:
        narrow = {"And": {"Prefix": rule.prefix, "ObjectSizeGreaterThan": rule.larger_than}}
    deed: dict[Action, dict[str, Any]] = {
        Action.MOVE: {"Transitions": [{"Days": rule.days, "StorageClass": rule.storage_class}]},
        Action.ABORT_UPLOADS: {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": rule.days}},
        Action.DELETE_NONCURRENT: {"NoncurrentVersionExpiration": {"NoncurrentDays": rule.days}},
        Action.CLEAN_MARKERS: {"Expiration": {"ExpiredObjectDeleteMarker": True}},
        Action.DELETE: {"Expiration": {"Days": rule.days}},
    }
    return {"ID": rule.id, "Filter": narrow, "Status": "Enabled", **deed[rule.action]}


def _from_s3(found: Document) -> Iterator[Rule]:
    for one in found["Rules"]:
        narrow = one.get("Filter") or {}
        both = narrow.get("And", {})
        if one["Status"] != "Enabled" or "Tag" in narrow or both.get("Tags"):
            continue
        name = str(one.get("ID", ""))
        prefix = str(one.get("Prefix") or narrow.get("Prefix") or both.get("Prefix") or "")
        larger = int(narrow.get("ObjectSizeGreaterThan") or both.get("ObjectSizeGreaterThan") or 0)
        for move in one.get("Transitions", ()):
            yield Rule(name, Action.MOVE, int(move.get("Days", 0)), prefix, move["StorageClass"], larger)
        if (abort := one.get("AbortIncompleteMultipartUpload")) is not None:
            yield Rule(name, Action.ABORT_UPLOADS, int(abort["DaysAfterInitiation"]), prefix)
        if (old := one.get("NoncurrentVersionExpiration")) is not None:
            yield Rule(name, Action.DELETE_NONCURRENT, int(old.get("NoncurrentDays", 0)), prefix, "", larger)
        if (end := one.get("Expiration")) is not None:
            # With a date instead of days, the objects go on that day whatever their age.
            deletes = "Days" in end or "Date" in end
            action = Action.DELETE if deletes else Action.CLEAN_MARKERS
            yield Rule(name, action, int(end.get("Days", 0)), prefix, "", larger)


# ---- Azure Blob Storage

_AZURE_MOVES = {"tierToCool": "Cool", "tierToCold": "Cold", "tierToArchive": "Archive", "tierToHot": "Hot"}


def _azure(rules: Iterable[Rule]) -> dict[str, Any]:
    return {"rules": [_azure_rule(rule) for rule in rules]}


def _azure_rule(rule: Rule) -> dict[str, Any]:
    deed = "delete" if rule.action is Action.DELETE else f"tierTo{rule.storage_class.capitalize()}"
    return {
        "name": rule.id,
        "enabled": True,
        "type": "Lifecycle",
        "definition": {
            "filters": {"blobTypes": ["blockBlob"], "prefixMatch": [rule.prefix]},
            "actions": {"baseBlob": {deed: {"daysAfterModificationGreaterThan": rule.days}}},
        },
    }


def _from_azure(found: Document) -> Iterator[Rule]:
    policy = found.get("properties", found).get("policy", found.get("policy", found))
    for one in policy["rules"]:
        definition = one["definition"]
        narrow = definition.get("filters") or {}
        if not one.get("enabled", True) or narrow.get("blobIndexMatch"):
            continue
        for prefix in narrow.get("prefixMatch") or [""]:
            yield from _azure_deeds(str(one["name"]), prefix, definition["actions"])


def _azure_deeds(name: str, prefix: str, actions: Document) -> Iterator[Rule]:
    for deed, when in (actions.get("baseBlob") or {}).items():
        if deed == "enableAutoTierToHotFromCool":
            continue
        days = min((int(number) for number in when.values() if number is not None), default=0)
        if deed == "delete":
            yield Rule(name, Action.DELETE, days, prefix)
        else:
            yield Rule(name, Action.MOVE, days, prefix, _AZURE_MOVES.get(deed, deed))
    if (actions.get("version") or {}).get("delete") is not None:
        # It counts from when the version was made: one that was hidden today may be gone tomorrow.
        yield Rule(name, Action.DELETE_NONCURRENT, 0, prefix)


# ---- Google Cloud Storage


def _gcs(rules: Iterable[Rule]) -> dict[str, Any]:
    return {"lifecycle": {"rule": [_gcs_rule(rule) for rule in rules]}}


def _gcs_rule(rule: Rule) -> dict[str, Any]:
    where: dict[str, Any] = {"matchesPrefix": [rule.prefix]} if rule.prefix else {}
    if rule.suffixes:
        where["matchesSuffix"] = list(rule.suffixes)
    if rule.action is Action.DELETE_NONCURRENT:
        return {"action": {"type": "Delete"}, "condition": {"daysSinceNoncurrentTime": rule.days, **where}}
    kinds: dict[Action, dict[str, str]] = {
        Action.MOVE: {"type": "SetStorageClass", "storageClass": rule.storage_class},
        Action.ABORT_UPLOADS: {"type": "AbortIncompleteMultipartUpload"},
        Action.DELETE: {"type": "Delete"},
    }
    return {"action": kinds[rule.action], "condition": {"age": rule.days, **where}}


_OLD_VERSIONS = ("daysSinceNoncurrentTime", "noncurrentTimeBefore", "numNewerVersions")
_OWN_TIME = ("customTimeBefore", "daysSinceCustomTime")


def gcs_rules(found: Document) -> Sequence[Document]:
    """The rules as the API, or as `gcloud storage buckets describe`, wraps them."""
    inner = next((found[key] for key in ("lifecycle", "lifecycle_config") if key in found), found)
    rules: Sequence[Document] = inner.get("rule", ())
    return rules


def _from_gcs(found: Document) -> Iterator[Rule]:
    for number, one in enumerate(gcs_rules(found)):
        action, when = one["action"], one["condition"]
        if any(key in when for key in _OWN_TIME):
            continue
        suffixes = tuple(when.get("matchesSuffix", ()))
        for prefix in when.get("matchesPrefix") or [""]:
            yield _gcs_deed(f"rule {number + 1}", action, when, prefix, suffixes)


def _gcs_deed(name: str, action: Document, when: Document, prefix: str, suffixes: tuple[str, ...]) -> Rule:
    age = int(when.get("age", 0))
    if action["type"] == "SetStorageClass":
        return Rule(name, Action.MOVE, age, prefix, action["storageClass"], 0, suffixes)
    if action["type"] == "AbortIncompleteMultipartUpload":
        return Rule(name, Action.ABORT_UPLOADS, age, prefix)
    if any(key in when for key in _OLD_VERSIONS) or when.get("isLive") is False:
        days = int(when.get("daysSinceNoncurrentTime", 0))
        return Rule(name, Action.DELETE_NONCURRENT, days, prefix, "", 0, suffixes)
    return Rule(name, Action.DELETE, age, prefix, "", 0, suffixes)


_WRITERS: Mapping[Vendor, Callable[[Iterable[Rule]], dict[str, Any]]] = {
    Vendor.S3: _s3,
    Vendor.AZURE: _azure,
    Vendor.GCS: _gcs,
}
_READERS: Mapping[Vendor, Callable[[Document], Iterator[Rule]]] = {
    Vendor.S3: _from_s3,
    Vendor.AZURE: _from_azure,
    Vendor.GCS: _from_gcs,
}
