"""Restore a cluster: plan first, with refusals and an estimate; then lay files down, recover, and compare.

`plan` reads and decides; `run` acts. A restore needs the repository and a private key and nothing else: no
catalog, no Prefect, not the host that took the backup.
"""

from seawall.restore.plan import RestorePlan, plan
from seawall.restore.run import RestoreReport, recovered, run

__all__ = ["RestorePlan", "RestoreReport", "plan", "recovered", "run"]
