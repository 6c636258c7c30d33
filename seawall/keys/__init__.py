"""OpenPGP keys: the ring that wraps and unwraps data keys, and the recovery kit."""

from seawall.keys.kit import recovery_kit
from seawall.keys.ring import KeyInfo, KeyRing, open_ring

__all__ = ["KeyInfo", "KeyRing", "open_ring", "recovery_kit"]
