"""Opening a cluster's files while the server works on them."""

from __future__ import annotations

import os

from seawall.errors import ClusterError, PrivilegeMissing
from seawall.postgres.scan import CopyEntry

# Files up to this size that are no relations are replaced as a whole when PostgreSQL changes them.
SMALL_BYTES = 1024 * 1024


def opened(entry: CopyEntry) -> int:
    """A descriptor for reading a listed file, or -1 if it vanished.

    Raises:
        PrivilegeMissing, ClusterError: it cannot be read.
    """
    try:
        return os.open(entry.place, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    except PermissionError as error:
        raise PrivilegeMissing(f"{entry.absolute} cannot be read by this account") from error
    except OSError as error:
        raise ClusterError(f"{entry.absolute} cannot be read: {error.strerror}") from error
