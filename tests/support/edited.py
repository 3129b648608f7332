"""Copies of a scan's file in which something is changed."""

import ismrmrd


def edited(scan, folder, edit) -> str:
    """A copy of the scan whose acquisitions `edit` has seen: (number, acquisition) -> acquisition or None."""
    copy = folder / "edited.h5"
    source = ismrmrd.Dataset(str(scan), "dataset", create_if_needed=False)
    target = ismrmrd.Dataset(str(copy), "dataset", create_if_needed=True)
    target.write_xml_header(source.read_xml_header())
    for number in range(source.number_of_acquisitions()):
        acquisition = edit(number, source.read_acquisition(number))
        if acquisition is not None:
            target.append_acquisition(acquisition)
    target.close()
    source.close()
    return str(copy)
