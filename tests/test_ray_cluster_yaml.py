"""ray_cluster.yaml is read by Ray's own launcher, and says what a cluster of machines at hand needs."""

import ipaddress
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

PROJECT = Path(__file__).resolve().parents[1]
EXAMPLE_ADDRESSES = ipaddress.ip_network("192.0.2.0/24")


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "ray_cluster.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    """The file as `ray up` sees it: checked against Ray's schema, with Ray's defaults filled in."""
    config = prepare_config(written)
    validate_config(config)
    return config


def start_line(config: dict[str, Any], whose: str) -> str:
    [line] = [command for command in config[f"{whose}_start_ray_commands"] if "ray start" in command]
    return line


def test_ray_accepts_the_file_and_starts_every_worker(prepared: dict[str, Any]):
    [node_type] = prepared["available_node_types"].values()
    worker_count = len(prepared["provider"]["worker_ips"])
    assert worker_count >= 1
    assert node_type["min_workers"] == node_type["max_workers"] == worker_count


def test_addresses_are_examples_that_belong_to_nobody(written: dict[str, Any]):
    provider = written["provider"]
    for address in (provider["head_ip"], *provider["worker_ips"]):
        assert ipaddress.ip_address(address) in EXAMPLE_ADDRESSES


def test_head_runs_the_autoscaler_that_starts_the_workers_of_a_local_cluster(prepared: dict[str, Any]):
    head = start_line(prepared, "head")
    assert "RAY_enable_autoscaler_v2=0" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


def test_head_gives_up_a_machine_that_is_cut_off_within_ten_seconds(prepared: dict[str, Any]):
    head = start_line(prepared, "head")
    assert "RAY_health_check_period_ms=1000" in head
    assert "RAY_health_check_timeout_ms=2000" in head
    assert "RAY_health_check_failure_threshold=3" in head


@pytest.mark.parametrize("whose", ["head", "worker"])
def test_ray_is_stopped_before_it_is_started(prepared: dict[str, Any], whose: str):
    commands = prepared[f"{whose}_start_ray_commands"]
    assert commands[0] == "ray stop"
    assert "ray start" in commands[1]


@pytest.mark.parametrize("whose", ["head", "worker"])
def test_nodes_start_without_usage_reports_and_with_authentication_decided(prepared: dict[str, Any], whose: str):
    line = start_line(prepared, whose)
    assert "--disable-usage-stats" in line
    assert "RAY_AUTH_MODE=" in line


@pytest.mark.parametrize("whose", ["head", "worker"])
def test_the_launchers_single_thread_does_not_reach_the_actors(prepared: dict[str, Any], whose: str):
    line = start_line(prepared, whose)
    assert line.index("unset OMP_NUM_THREADS") < line.index("ray start")


def test_every_shipped_path_exists_and_is_small(written: dict[str, Any]):
    for here in written["file_mounts"].values():
        path = PROJECT / here
        assert path.exists(), f"{here} is shipped to every node, but is not there"
        assert path != PROJECT, "the whole folder holds .venv and .git, and Ray would read every byte of them"


def test_what_the_wheel_holds_is_what_the_nodes_get(written: dict[str, Any]):
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {*packages, "Makefile", "pyproject.toml", "constraints.txt", project["project"]["readme"]}
    assert needed <= set(written["file_mounts"].values())


def test_nodes_install_from_the_lock_and_find_ray_on_their_path(written: dict[str, Any]):
    install, path, *_ = written["setup_commands"]
    assert install.startswith("make -C ~/fedshare ready")
    assert "~/.bashrc" in path
    assert ".venv/bin" in path
