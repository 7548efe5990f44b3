"""The service: HTTP, logs, embedders - everything that has effects. The mathematics is in `bandits`."""

import os

# One thread for NumPy's products as for torch's (app.py): on shared cores a second one stalls more than it helps. It is read when
# NumPy is loaded, so it comes before every other import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def install_hint(extra: str) -> str:
    """The command that installs an optional part of nextarm, in its checkout: no package index has nextarm, and what another
    project publishes there under this name would be installed instead.
    """
    return f"pip install -c constraints.txt '.[{extra}]'"
