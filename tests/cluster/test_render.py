import base64
import ipaddress
import json
import tomllib
from pathlib import Path

import yaml

from cluster import flags, network, render
from cluster.flags import ControlPlaneFiles
from cluster.plan import API_SERVICE_ADDRESS, POD_CIDR, SERVICE_CIDR, ClusterPlan

PLAN = ClusterPlan("dev")
FILES = ControlPlaneFiles(Path("/secrets"), Path("/data"))


def test_containerd_keeps_everything_in_the_folders_of_its_node() -> None:
    node = PLAN.node(1)
    text = render.containerd_config(node, cni_bin="/bin/cni", runc="/usr/sbin/runc", snapshotter="overlayfs")
    config = tomllib.loads(text)
    runtime = config["plugins"]["io.containerd.cri.v1.runtime"]
    options = runtime["containerd"]["runtimes"]["runc"]["options"]
    places = [
        config["root"],
        config["state"],
        config["grpc"]["address"],
        config["plugins"]["io.containerd.shim.v1.manager"]["socket_dir"],
        config["plugins"]["io.containerd.internal.v1.opt"]["path"],
        options["Root"],
        runtime["cni"]["conf_dir"],
    ]
    assert config["version"] == 3
    assert all(
        Path(place).is_relative_to(node.run_dir) or Path(place).is_relative_to(node.data_dir)
        for place in places
    )
    assert runtime["netns_mounts_under_state_dir"] is True
    assert config["plugins"]["io.containerd.cri.v1.images"]["pinned_images"] == {
        "sandbox": render.PAUSE_IMAGE
    }


def test_pods_get_addresses_of_their_nodes_range() -> None:
    config = json.loads(render.cni_config(PLAN.node(3)))
    subnet = ipaddress.IPv4Network(config["plugins"][0]["ipam"]["ranges"][0][0]["subnet"])
    assert subnet == ipaddress.IPv4Network("10.244.3.0/24")
    assert subnet.subnet_of(ipaddress.IPv4Network(POD_CIDR))


def test_kubelets_share_no_folder_and_ask_for_credentials() -> None:
    one, other = (
        yaml.safe_load(
            render.kubelet_config(PLAN, PLAN.node(index), ca_file=FILES.ca, cert=Path("/c"), key=Path("/k"))
        )
        for index in (0, 1)
    )
    for field in ("address", "containerRuntimeEndpoint", "cgroupRoot", "podLogsDir", "volumePluginDir"):
        assert one[field] != other[field]
    assert one["authentication"]["anonymous"]["enabled"] is False
    assert one["authorization"]["mode"] == "Webhook"
    assert one["clusterDNS"] == other["clusterDNS"] == ["10.200.0.1"]


def test_token_file_quotes_groups_as_one_field() -> None:
    tokens = {render.ADMIN: "t1", render.SCHEDULER: "t2", render.node_identity("dev-0"): "t3"}
    assert render.token_file(tokens).splitlines() == [
        't1,kubernetes-admin,admin,"system:masters"',
        "t2,system:kube-scheduler,scheduler",
        't3,system:node:dev-0,node-dev-0,"system:nodes"',
    ]


def test_kubeconfig_carries_the_authority_when_it_is_given() -> None:
    config = yaml.safe_load(render.kubeconfig("https://127.0.0.1:1", Path("/ca"), "secret", b"PEM"))
    cluster = config["clusters"][0]["cluster"]
    assert base64.b64decode(cluster["certificate-authority-data"]) == b"PEM"
    assert "certificate-authority" not in cluster
    assert config["users"][0]["user"] == {"token": "secret"}


def test_kubeconfig_names_the_authority_otherwise() -> None:
    config = yaml.safe_load(render.kubeconfig("https://127.0.0.1:1", Path("/ca"), "secret"))
    assert config["clusters"][0]["cluster"] == {
        "server": "https://127.0.0.1:1",
        "certificate-authority": "/ca",
    }


def test_dns_may_only_read() -> None:
    role, binding = yaml.safe_load_all(render.dns_rbac())
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}
    assert binding["subjects"][0]["name"] == render.DNS.user


def test_dns_answers_on_the_address_that_kubelets_announce() -> None:
    assert f"bind {PLAN.node(0).address}" in render.corefile(PLAN, Path("/dns.kubeconfig"))


def test_kube_proxy_leaves_the_connection_table_of_the_host_alone() -> None:
    config = yaml.safe_load(render.kube_proxy_config(PLAN.node(1), Path("/proxy.kubeconfig")))
    assert config["mode"] == "nftables"
    assert config["conntrack"]["maxPerCore"] == config["conntrack"]["min"] == 0


def test_api_server_checks_tokens_writes_an_audit_log_and_knows_its_service_range() -> None:
    command = flags.apiserver("kube-apiserver", FILES, address="10.0.0.1", port=6443, etcd_url="http://e")
    assert "--authorization-mode=Node,RBAC" in command
    assert "--audit-log-path=/data/audit.log" in command
    assert "--kubelet-preferred-address-types=InternalIP" in command
    assert f"--service-cluster-ip-range={SERVICE_CIDR}" in command
    assert next(ipaddress.ip_network(SERVICE_CIDR).hosts()) == ipaddress.ip_address(API_SERVICE_ADDRESS)


def test_worker_and_first_node_route_to_each_other() -> None:
    commands = [" ".join(command) for command in network.worker(PLAN, PLAN.node(1))]
    assert "ip -n stoker-dev-1 route add default via 10.200.0.1 dev up0" in commands
    assert "ip -n stoker-dev-0 route add 10.244.1.0/24 via 10.200.0.2" in commands


def test_host_reaches_the_api_server_by_a_socket_and_by_no_route() -> None:
    inside, on_host = network.api_relay(PLAN, 40000)
    assert inside[1].startswith("UNIX-LISTEN:/run/stoker/dev/api.sock,")
    assert on_host[1:] == [
        "TCP-LISTEN:40000,bind=127.0.0.1,reuseaddr,fork",
        "UNIX-CONNECT:/run/stoker/dev/api.sock",
    ]
