"""`python -m deployments.server`: the Prefect server, configured by its environment alone."""

from __future__ import annotations

import sys

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings


def main() -> int:
    settings = get_current_settings().server
    if settings.api.auth_string is None:
        sys.exit("the Prefect API is not served without authentication")
    uvicorn.run(
        app=create_app(final=True),
        host=settings.api.host,
        port=settings.api.port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        log_level="warning",
        # Open event streams of a browser or worker must not hold up the end.
        timeout_graceful_shutdown=3,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
