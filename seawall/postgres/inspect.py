"""What a live cluster says of itself: identity, layout, databases, extensions, configuration files.

Read-only. Needs CONNECT on each database and membership in pg_monitor; where the server denies a detail that a
backup can do without, a warning in the log names it.
"""

from __future__ import annotations

from collections.abc import Mapping

from seawall.model import Cluster
from seawall.settings import SourceSettings


def inspect(source: SourceSettings) -> Cluster:
    """Look at a live cluster.

    Raises:
        ServerUnreachable, PrivilegeMissing, ClusterError: the server did not answer what is needed.
    """
    raise NotImplementedError


def configuration(source: SourceSettings, cluster: Cluster) -> Mapping[str, str]:
    """The text of each configuration file that lies outside the data directory, by absolute path.

    Read on this host where it is the cluster's and the file is readable, else through the server
    (pg_read_server_files). A file that neither way yields is left out with a warning.
    """
    raise NotImplementedError


def globals_of(source: SourceSettings, *, passwords: bool = False) -> str:
    """Roles, memberships, tablespaces and settings of roles as SQL, from `pg_dumpall --globals-only`.

    Args:
        source: which cluster; its major version's pg_dumpall must be installed.
        passwords: with the roles' password hashes, which only a superuser can read. They are secrets.

    Raises:
        BinariesMissing: no pg_dumpall of this version or newer.
        PrivilegeMissing, ServerUnreachable, ClusterError: pg_dumpall failed.
    """
    raise NotImplementedError
