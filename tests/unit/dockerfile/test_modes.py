"""--chmod's texts: what is a mode, and what is not."""

from __future__ import annotations

import pytest

from firebuild.dockerfile.modes import check_mode
from firebuild.errors import DockerfileError


@pytest.mark.parametrize(
    "text", ["0", "644", "0755", "7777", "07777", "u+x", "u+x,go-w", "a=rX", "+t", "u=rwx,go=u-w", "go=", "ug+s-x"]
)
def test_modes(text: str) -> None:
    check_mode(text)


@pytest.mark.parametrize("text", ["8", "0999", "77777", "1a", "u", "rwx", "u+q", "u+x,", ",", "u +x", "+x\n", "-"[:0]])
def test_what_is_no_mode(text: str) -> None:
    with pytest.raises(DockerfileError):
        check_mode(text)
