from __future__ import annotations

import pytest


@pytest.fixture
def file(tmp_path):
    """Writes a prompt file."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write
