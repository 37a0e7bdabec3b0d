"""The pooling functions against their twins in float64 and against torch."""

from __future__ import annotations

import pytest

from tests.helpers import drawn

from .compiling import forget_what_was_compiled
from .pool_cases import SPACE, Pool, check_values, every_dtype

assert forget_what_was_compiled  # around every test


# -- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.isa
@every_dtype
@drawn(150, of=Pool, **SPACE)
def test_against_float64(device, dtype, case):
    check_values(case, dtype, device)
