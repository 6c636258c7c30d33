"""Which schema a catalog has, which one the code wants, and how the first becomes the second.

Migrations are part of the installed package. All pending ones run in one transaction: a catalog is either of
its old revision or of the newest one, never between.
"""

from __future__ import annotations

import warnings

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from seawall.catalog.database import Database
from seawall.catalog.models import CatalogRow
from seawall.catalog.revisions import MIGRATIONS, VERSION_TABLE, SchemaState, refuse_newer, state_of

TRIGGERS = {
    "sqlite": frozenset(
        {
            "audit_refuses_update",
            "audit_refuses_delete",
            "audit_refuses_replace",
            "audit_head_only_advances",
            "audit_head_refuses_delete",
            "audit_head_refuses_replace",
        }
    ),
    "postgresql": frozenset(
        {
            "audit_refuses_change",
            "audit_refuses_truncate",
            "audit_head_only_advances",
            "audit_head_refuses_delete",
            "audit_head_refuses_truncate",
        }
    ),
}


def upgrade(database: Database) -> SchemaState:
    """Bring the catalog to the newest schema, or create it; nothing happens if it is there already.

    Raises:
        CatalogTooNew: a newer Seawall migrated it.
    """
    with database.migrating() as connection:
        found = _state(connection)
        refuse_newer(found)
        if not found.is_newest:
            command.upgrade(_config(connection), "head")
        return _state(connection)


def downgrade(database: Database, revision: str) -> None:
    """Take the schema back to an older revision (`base`: none at all); data that it has no room for is lost."""
    with database.migrating() as connection:
        command.downgrade(_config(connection), revision)


def differences(database: Database) -> tuple[str, ...]:
    """How the database's schema differs from the models, one sentence each; empty when it does not."""
    with database.reading() as session:
        connection = session.connection()
        found = [repr(difference) for difference in _compared(connection)]
        indexes = _expected_indexes() - _indexes(connection)
        triggers = TRIGGERS[connection.dialect.name] - _triggers(connection)
        found += [f"the index {name} is missing" for name in sorted(indexes)]
        return (*found, *(f"the trigger {name} is missing" for name in sorted(triggers)))


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Whether Alembic shall look at something in the database: other tables in it are none of its business."""
    return kind != "table" or name in CatalogRow.metadata.tables


def is_comparable(item: sa.schema.SchemaItem, *_context: object) -> bool:
    """Whether Alembic can compare something: SQLite tells of an index neither expressions nor directions."""
    return not (isinstance(item, sa.Index) and item.name in _DESCENDING)


_DESCENDING = frozenset(
    index.name
    for table in CatalogRow.metadata.tables.values()
    for index in table.indexes
    if any(not isinstance(expression, sa.Column) for expression in index.expressions)
)


def _compared(connection: sa.Connection) -> list[object]:
    opts: dict[str, object] = {
        "compare_type": True,
        "compare_server_default": True,
        "include_name": is_ours,
        "version_table": VERSION_TABLE,
    }
    if connection.dialect.name == "sqlite":
        opts["include_object"] = is_comparable
    context = MigrationContext.configure(connection, opts=opts)
    with warnings.catch_warnings():
        # Such an index is looked for by name in `differences`.
        warnings.filterwarnings("ignore", "autogenerate skipping metadata-specified expression-based index")
        return list(compare_metadata(context, CatalogRow.metadata))


def _state(connection: sa.Connection) -> SchemaState:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return state_of(context.get_current_revision())


def _config(connection: sa.Connection) -> Config:
    config = Config()
    # A percent sign in the path would be taken for interpolation.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _triggers(connection: sa.Connection) -> frozenset[str]:
    if connection.dialect.name == "sqlite":
        query = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    else:
        query = (
            "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'"
            " AND tgrelid IN (to_regclass('audit'), to_regclass('audit_head'))"
        )
    return frozenset(connection.exec_driver_sql(query).scalars())


def _expected_indexes() -> frozenset[str]:
    return frozenset(str(index.name) for table in CatalogRow.metadata.tables.values() for index in table.indexes)


def _indexes(connection: sa.Connection) -> frozenset[str]:
    if connection.dialect.name == "sqlite":
        query = "SELECT name FROM sqlite_master WHERE type = 'index'"
    else:
        query = "SELECT indexname FROM pg_indexes WHERE schemaname = ANY (current_schemas(false))"
    return frozenset(connection.exec_driver_sql(query).scalars())
