"""What a device can do."""

import pytest
from dpmrecon.device import cpu_gains_by_bfloat16

CPUINFO = "processor : 0\nvendor_id : {}\nflags : fpu avx512f {}\n\n"


@pytest.mark.parametrize(
    "vendor, flags, gains",
    [
        ("AuthenticAMD", "avx512_bf16 avx512_vnni", True),
        ("AuthenticAMD", "avx512_vnni", False),
        ("GenuineIntel", "avx512_bf16 avx512_fp16", False),
        ("GenuineIntel", "avx512_bf16 amx_bf16 amx_tile", True),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster(vendor, flags, gains):
    assert cpu_gains_by_bfloat16(2 * CPUINFO.format(vendor, flags)) is gains
