"""Lets these tests import what tests/support holds, as tests.support.NAME."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
