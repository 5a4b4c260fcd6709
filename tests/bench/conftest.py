"""The scripts of bench/ are no package: they import each other from their own folder, and so do these tests."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))
