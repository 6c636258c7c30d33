"""WAL out of a cluster and back into it.

Out: `receiver.Receiver` streams on a replication slot (the default); `client` is the archive_command for those who
cannot stream, and hands each segment to a running `agent.Agent`. Back: `client` is the restore_command too, served
by the same agent, which fetches ahead. `continuity` proves that what is stored has no gap.

This package's own module imports nothing: the client starts once for every 16 MiB of WAL and must stay light.
"""
