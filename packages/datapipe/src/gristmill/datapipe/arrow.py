"""pyarrow.compute under a type that lets it be called: its functions are made at import, and no checker knows them."""

from __future__ import annotations

from typing import Any

import pyarrow.compute

compute: Any = pyarrow.compute
