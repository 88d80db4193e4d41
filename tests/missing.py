"""What a test does without a program it needs: left out and said so, unless nothing may be left out."""

import os

import pytest


def left_out(reason):
    """Skip, or fail where nothing may be left out (`MONOCHORD_REQUIRE=all`)."""
    if os.environ.get("MONOCHORD_REQUIRE") == "all":
        pytest.fail(reason)
    pytest.skip(reason)
