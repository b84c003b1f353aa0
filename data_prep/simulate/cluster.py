"""The simulated OpenStack, declared: hosts, programs, operations and their service times.

One controller and four compute hosts, named and sized as in the archive (8 cores, 16,013 MB). Service times
are medians in seconds of log-normal laws; those of keystone and glance are read off the one real trace, the
others chosen so that Rally's iterations last as long as the real ones (`docs/simulator.md`).
"""

import dataclasses

CONTROLLER = "wally113"
COMPUTES = ("wally117", "wally122", "wally123", "wally124")
HOSTS = (CONTROLLER, *COMPUTES)
CORES = 8
MEMORY_MB = 16013
INSTANCE_MB = 4096  # flavor m1.medium: 2 VCPU, 40 GB
ADDRESS = {
    "wally113": "130.149.249.123",
    "wally117": "130.149.249.127",
    "wally122": "130.149.249.132",
    "wally123": "130.149.249.133",
    "wally124": "130.149.249.134",
}
# Normal level of cpu.user (%) and mem.used (MB) without simulated work or instances.
BASE_CPU = {"wally113": 13.0, "wally117": 5.0, "wally122": 5.5, "wally123": 6.0, "wally124": 4.5}
BASE_MEMORY = {"wally113": 11800.0, "wally117": 3900.0, "wally122": 4300.0, "wally123": 4100.0, "wally124": 3700.0}


@dataclasses.dataclass(frozen=True)
class Program:
    """A program: where it runs, how OSProfiler and fluentd call it, and its pools of workers."""

    name: str
    project: str
    profiler_service: str  # the `service` of its OSProfiler events
    hosts: tuple[str, ...]
    wsgi_workers: int = 0
    rpc_workers: int = 0
    trace_db: bool = True  # the one real trace holds no db events of glance and keystone
    access: str = ""  # style of the access log line, "" none
    access_module: str = ""
    error_module: str = ""
    error: tuple[str, str] = ("", "")  # type and text of its own exceptions
    port: int = 0


PROGRAMS = {
    program.name: program
    for program in (
        Program("keystone", "keystone", "public", (CONTROLLER,), wsgi_workers=8, trace_db=False,
                access="apache", access_module="keystone.common.wsgi", error_module="keystone.common.wsgi", port=5000,
                error=("AttributeError", "'NoneType' object has no attribute 'is_active'")),
        Program("glance-api", "glance", "api", (CONTROLLER,), wsgi_workers=10, trace_db=False,
                access="eventlet", access_module="eventlet.wsgi.server", error_module="glance.common.wsgi",
                error=("IOError", "[Errno 5] Input/output error"), port=9292),
        Program("nova-api", "nova", "osapi_compute", (CONTROLLER,), wsgi_workers=8, access="nova",
                access_module="nova.osapi_compute.wsgi.server", error_module="nova.api.openstack.wsgi",
                error=("KeyError", "u'cell_mapping'"), port=8774),
        Program("nova-conductor", "nova", "conductor", (CONTROLLER,), rpc_workers=8,
                error_module="oslo_messaging.rpc.server",
                error=("StaleDataError", "UPDATE statement on table 'instances' expected to update 1 row(s); "
                       "0 were matched.")),
        Program("nova-scheduler", "nova", "scheduler", (CONTROLLER,), rpc_workers=4,
                error_module="oslo_messaging.rpc.server",
                error=("TypeError", "unsupported operand type(s) for -: 'NoneType' and 'int'")),
        Program("nova-compute", "nova", "compute", COMPUTES, rpc_workers=10,
                error_module="oslo_messaging.rpc.server",
                error=("libvirtError", "internal error: process exited while connecting to monitor")),
        Program("placement-api", "placement", "api", (CONTROLLER,), wsgi_workers=6, access="placement",
                access_module="placement.requestlog", error_module="placement.fault_wrap",
                error=("ResourceProviderConcurrentUpdateDetected",
                       "Another thread concurrently updated the resource provider data"), port=8780),
        Program("neutron-server", "neutron", "neutron-server", (CONTROLLER,), wsgi_workers=8, rpc_workers=6,
                access="neutron", access_module="neutron.wsgi", error_module="neutron.api.v2.resource",
                error=("DBDeadlock", "(1213, 'Deadlock found when trying to get lock; try restarting "
                       "transaction')"), port=9696),
        Program("neutron-dhcp-agent", "neutron", "neutron-dhcp-agent", (CONTROLLER,), rpc_workers=4,
                error_module="neutron.agent.dhcp.agent",
                error=("ProcessExecutionError", "Exit code: 2; Stdin: ; Stdout: ; Stderr: RTNETLINK answers")),
        Program("neutron-openvswitch-agent", "neutron", "neutron-openvswitch-agent", HOSTS, rpc_workers=4,
                error_module="neutron.plugins.ml2.drivers.openvswitch.agent.ovs_neutron_agent",
                error=("RuntimeError", "ofctl request timed out")),
        Program("neutron-l3-agent", "neutron", "neutron-l3-agent", (CONTROLLER,), rpc_workers=2,
                error_module="neutron.agent.l3.agent"),
        Program("mariadb", "", "", (CONTROLLER,), rpc_workers=24),
        Program("rabbitmq", "", "", (CONTROLLER,), rpc_workers=24),
    )
}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a program: own service time (median seconds, log-normal), statements, RPC method."""

    program: str
    seconds: float
    sigma: float = 0.3
    cpu_share: float = 0.6  # of the service time; the rest waits for disk or network
    tables: tuple[str, ...] = ()  # one database statement each
    method: str = ""  # HTTP
    path: str = ""
    query: str = ""
    status: int = 200
    length: int = 800  # bytes of the answer, in access logs
    function: str = ""  # RPC


OPERATIONS = {
    "identity.version": Operation("keystone", 0.055, method="GET", path="/", status=300, length=605),
    "identity.token": Operation("keystone", 0.31, 0.22, tables=("user", "project", "assignment"), method="POST",
                                path="/v3/auth/tokens", status=201, length=6543),
    "identity.validate": Operation("keystone", 0.095, tables=("revocation_event",), method="GET",
                                   path="/v3/auth/tokens", length=6512),
    "image.schema": Operation("glance-api", 0.085, method="GET", path="/v2/schemas/image", length=6244),
    "image.create": Operation("glance-api", 0.135, tables=("images",), method="POST", path="/v2/images",
                              status=201, length=912),
    "image.show": Operation("glance-api", 0.042, 0.35, tables=("images",), method="GET",
                            path="/v2/images/{image}", length=1024),
    "image.upload": Operation("glance-api", 4.5, 0.10, cpu_share=0.12, tables=("images", "image_locations"),
                              method="PUT", path="/v2/images/{image}/file", status=204, length=0),
    "image.delete": Operation("glance-api", 1.42, 0.28, cpu_share=0.1, tables=("images",), method="DELETE",
                              path="/v2/images/{image}", status=204, length=0),
    "server.create": Operation("nova-api", 0.26, tables=("nova_api.flavors", "nova_api.build_requests"),
                               method="POST", path="/v2.1/servers", status=202, length=834),
    "server.show": Operation("nova-api", 0.085, method="GET",
                             path="/v2.1/servers/{server}", length=1893),
    "server.delete": Operation("nova-api", 0.14, tables=("nova.instances",), method="POST",
                               path="/v2.1/servers/{server}/action", status=202, length=0),
    "server.event": Operation("nova-api", 0.05, tables=("nova.instances",), method="POST",
                              path="/v2.1/os-server-external-events", length=583),
    "build.schedule": Operation("nova-conductor", 0.07, tables=("nova.instances", "nova_api.host_mappings"),
                                function="nova.conductor.manager.ComputeTaskManager.schedule_and_build_instances"),
    "object.save": Operation("nova-conductor", 0.014, tables=("nova.instances",),
                             function="nova.conductor.manager.ConductorManager.object_action"),
    "host.select": Operation("nova-scheduler", 0.11, tables=("nova_api.host_mappings",),
                             function="nova.scheduler.manager.SchedulerManager.select_destinations"),
    "placement.candidates": Operation("placement-api", 0.055, method="GET", path="/allocation_candidates",
                                      query="limit=1000&resources=DISK_GB%3A40%2CMEMORY_MB%3A4096%2CVCPU%3A2",
                                      length=2671),
    "placement.allocate": Operation("placement-api", 0.05, method="PUT", path="/allocations/{server}",
                                    status=204, length=0),
    "placement.release": Operation("placement-api", 0.04, method="DELETE", path="/allocations/{server}",
                                   status=204, length=0),
    "placement.inventory": Operation("placement-api", 0.03, method="GET",
                                     path="/resource_providers/{provider}/inventories", length=410),
    "placement.aggregates": Operation("placement-api", 0.025, method="GET",
                                      path="/resource_providers/{provider}/aggregates", length=54),
    "build.run": Operation("nova-compute", 0.35, function="nova.compute.manager.ComputeManager.build_and_run_instance"),
    "build.terminate": Operation("nova-compute", 0.22,
                                 function="nova.compute.manager.ComputeManager.terminate_instance"),
    "build.event": Operation("nova-compute", 0.012,
                             function="nova.compute.manager.ComputeManager.external_instance_event"),
    "network.create": Operation("neutron-server", 0.37, tables=("networks",), method="POST",
                                path="/v2.0/networks", status=201, length=860),
    "network.delete": Operation("neutron-server", 0.43, tables=("networks",), method="DELETE",
                                path="/v2.0/networks/{network}", status=204, length=205),
    "network.list": Operation("neutron-server", 0.07, tables=("networks",), method="GET", path="/v2.0/networks",
                              query="tenant_id={tenant}&shared=False", length=1182),
    "port.create": Operation("neutron-server", 0.5, tables=("ports",), method="POST",
                             path="/v2.0/ports", status=201, length=1097),
    "port.list": Operation("neutron-server", 0.06, tables=("ports",), method="GET", path="/v2.0/ports",
                           query="device_id={server}", length=1108),
    "port.delete": Operation("neutron-server", 0.33, tables=("ports",), method="DELETE", path="/v2.0/ports/{port}",
                             status=204, length=205),
    "port.details": Operation("neutron-server", 0.08, tables=("ports",),
                              function="neutron.plugins.ml2.rpc.RpcCallbacks"
                              ".get_devices_details_list_and_failed_devices"),
    "port.up": Operation("neutron-server", 0.06, tables=("ports",),
                         function="neutron.plugins.ml2.rpc.RpcCallbacks.update_device_list"),
    "agent.report": Operation("neutron-server", 0.015, tables=("agents",),
                              function="neutron.db.agents_db.AgentExtRpcCallback.report_state"),
    "dhcp.info": Operation("neutron-server", 0.05, tables=("networks",),
                           function="neutron.api.rpc.handlers.dhcp_rpc.DhcpRpcCallback.get_network_info"),
    "dhcp.network_create": Operation("neutron-dhcp-agent", 0.12,
                                     function="neutron.agent.dhcp.agent.DhcpAgent.network_create_end"),
    "dhcp.network_delete": Operation("neutron-dhcp-agent", 0.1,
                                     function="neutron.agent.dhcp.agent.DhcpAgent.network_delete_end"),
    "dhcp.port_create": Operation("neutron-dhcp-agent", 0.09,
                                  function="neutron.agent.dhcp.agent.DhcpAgent.port_create_end"),
    "ovs.port_update": Operation("neutron-openvswitch-agent", 0.11,
                                 function="neutron.plugins.ml2.drivers.openvswitch.agent.ovs_neutron_agent"
                                 ".OVSNeutronAgent.port_update"),
}
