"""Seawall's engine: everything Seawall knows about backup and recovery.

The engine imports neither Prefect nor a web framework: a restore needs only the storage and a key.
The verbs are `backup.take`, `restore.plan` and `restore.run`, `verify.check` and `retention.plan`.
"""

__version__ = "0.1.0"
