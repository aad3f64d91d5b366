"""``python -m onnx_lowrank``."""

from __future__ import annotations

import sys

from onnx_lowrank.cli.main import main

sys.exit(main())
