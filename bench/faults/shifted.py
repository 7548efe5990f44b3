"""`python -m bench.faults.shifted serve ...` is `nextarm serve ...` on a machine whose clock is SHIFT_S seconds ahead."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import partial

from service.__main__ import main
from service.api import app
from service.cli import serve as serving

if __name__ == "__main__":
    shift = timedelta(seconds=float(os.environ["SHIFT_S"]))
    serving.running = partial(app.running, clock=lambda: datetime.now(UTC) + shift)  # type: ignore[attr-defined]
    main()
