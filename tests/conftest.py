"""What all tests share."""

from __future__ import annotations

import torch

torch.set_num_threads(1)  # as in the server; small matrices on shared cores only lose by a second thread
