"""Let pytest explain the assertions of the public suite as it does those of the tests."""

import pytest

pytest.register_assert_rewrite("durabledict.testing")
