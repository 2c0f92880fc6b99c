"""The example's modules are imported from where they lie, as its own scripts do."""

import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "import_feed"

sys.path.insert(0, str(EXAMPLE))
