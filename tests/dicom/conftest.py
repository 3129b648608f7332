"""Fixtures of the tests of DICOM."""

import pytest

from support.orthanc import started


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """(peer, REST address) of an empty archive."""
    with started(tmp_path_factory.mktemp("orthanc")) as found:
        yield found
