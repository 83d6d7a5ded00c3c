"""Imported before anything of ours: without a GPU the kernels' tests run in Triton's interpreter.

It has to be asked for before the kernels are first imported, which read it then.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
