"""Provides the small bundle that all tests of a live stream decode with, and its decoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedistill.bundle import Bundle
from edgedistill.runtime import Decoder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from ..bundles import write_test_bundle

    return write_test_bundle(tmp_path_factory.mktemp("live") / "test.edge")


@pytest.fixture
def decoder(bundle: Bundle) -> Iterator[Decoder]:
    with Decoder(bundle, "onnxruntime") as opened:
        yield opened


@pytest.fixture(scope="session")
def bundle_path(bundle: Bundle) -> Path:
    return bundle.path
