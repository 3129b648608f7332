"""Ray on a machine that other work shares: its own limits would end a cluster that is only slow."""

import pytest

PATIENCE = {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_memory_monitor_refresh_ms": "0",  # it would end workers for the memory of others
    "RAY_worker_niceness": "0",  # as polite as by itself, they hardly run beside other tests
}


@pytest.fixture(scope="session", autouse=True)
def patient_ray():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENCE.items():
            patch.setenv(name, value)
        yield
