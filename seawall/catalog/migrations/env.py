"""What Alembic runs for each command.

Seawall hands over a connection inside a transaction (see `seawall.catalog.schema`). A developer who drafts
a migration names a scratch catalog instead: `alembic -c seawall/catalog/migrations/alembic.ini -x url=… …`.
"""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa
from alembic import context

from seawall.catalog.database import Database
from seawall.catalog.models import CatalogRow
from seawall.catalog.place import Place
from seawall.catalog.revisions import VERSION_TABLE
from seawall.catalog.schema import is_comparable, is_ours
from seawall.catalog.types import AwareDateTime


def render_item(kind: str, item: object, _context: object) -> str | Literal[False]:
    """Migrations say `sa.DateTime(timezone=True)`: they must not change when the models' own types do."""
    if kind == "type" and isinstance(item, AwareDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def migrate(connection: sa.Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=CatalogRow.metadata,
        version_table=VERSION_TABLE,
        include_name=is_ours,
        include_object=is_comparable if connection.dialect.name == "sqlite" else None,
        render_item=render_item,
        compare_type=True,
        compare_server_default=True,
        # SQLite alters a table by copying it. The copy loses triggers: a migration of an audit table makes them anew.
        render_as_batch=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    given = context.config.attributes.get("connection")
    if isinstance(given, sa.Connection):
        migrate(given)
        return
    url = context.get_x_argument(as_dictionary=True).get("url")
    if not isinstance(url, str):
        raise SystemExit("name a scratch catalog: alembic … -x url=sqlite:////tmp/scratch.db …")
    with Database(Place.parse(url)).migrating() as connection:
        migrate(connection)


main()
