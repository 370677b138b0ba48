"""Makes benches short whose intervals are not what is tested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgedistill.bench import intervals


@pytest.fixture(scope="module")
def few_draws() -> Iterator[None]:
    """Lets a bench lose channels once in each way, which is most of its time otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RANDOM_DRAWS", 1)
        patch.setattr(intervals, "BANKS", 1)
        yield
