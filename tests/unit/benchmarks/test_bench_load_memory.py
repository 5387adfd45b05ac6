"""What is read off /proc."""

import pytest

from benchmarks.load_memory import parse_anonymous

STATUS = "Name:\tpython\nVmHWM:\t  900 kB\nRssAnon:\t     512 kB\nRssFile:\t  300 kB\n"


def test_only_anonymous_memory_counts() -> None:
    """RssAnon in bytes: mapped checkpoint files are not in it."""
    assert parse_anonymous(STATUS) == 512 * 1024


def test_a_kernel_that_does_not_tell_is_an_error() -> None:
    """No figure is made up."""
    with pytest.raises(ValueError, match="RssAnon"):
        parse_anonymous("Name:\tpython\n")
