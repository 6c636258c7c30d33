"""The program that PostgreSQL runs: it starts `client.py` from its bytecode.

The interpreter compiles a program that is named to it each time anew; for the client that is a quarter of its
processor time. Bytecode is kept of what is loaded as a module, so this program is as short as it can be and loads
the client. Where there is no bytecode, or an old one, the client is compiled as ever.
"""

# Every interpreter has loaded this one already; `importlib.machinery`, which shows the same class, it has not.
from _frozen_importlib_external import SourceFileLoader

_CLIENT = __file__.removesuffix("start.py") + "client.py"
_LOADER = SourceFileLoader("client", _CLIENT)
try:
    _CODE = _LOADER.get_code("client")
except (EOFError, ValueError, TypeError):
    # Bytecode that a power cut tore must not stop WAL from leaving.
    _CODE = compile(_LOADER.get_data(_CLIENT), _CLIENT, "exec")
exec(_CODE, {"__name__": "__main__"})  # type: ignore[arg-type] # noqa: S102 - a file of source has code; it is the program
