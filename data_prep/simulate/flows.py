"""What the programs do to answer an operation: their calls to one another and their log lines.

`FLOWS` maps operation names to generator functions (engine, context, instance, **arguments). Lines that speak
of an instance follow nova's as seen in the real logs, in order and number (`checks.py` compares the mix).
"""

import dataclasses

from data_prep.simulate.cluster import INSTANCE_MB, MEMORY_MB
from data_prep.simulate.state import CallFailed, Context

CLAIMS = "nova.compute.claims"
MANAGER = "nova.compute.manager"
DRIVER = "nova.virt.libvirt.driver"
BUILD_ATTEMPTS = 2


@dataclasses.dataclass
class Server:
    """A virtual machine as nova's database knows it."""

    server_id: str
    status: str = "BUILD"  # BUILD, ACTIVE, ERROR, DELETED
    host: str = ""
    port: str = ""
    attempts: int = 0
    resident: float = 0.0  # MB it takes on its host
    claimed: bool = False


def validate_token(engine, context, instance):
    """A program asks keystone about a token that it does not have in its cache."""
    try:
        yield from engine.http(context, "identity.validate")
    except CallFailed as failure:
        engine.log(instance, "WARNING", "keystonemiddleware.auth_token",
                   f"Unable to validate token: {failure.text}: ServiceError: Failed to fetch token data from identity "
                   "server", context)
        raise CallFailed("ServiceUnavailable", "The Keystone service is temporarily unavailable.", 503) from None


def image_schema(engine, context, instance, first=False, **_):
    if first:
        yield from validate_token(engine, context, instance)


def image_upload(engine, context, instance, image, **_):
    if engine.times.random() < 0.3:  # the picture comes over the public network, which is slow at times
        yield from engine.work(instance, min(engine.lognormal(3.5, 1.05), 160.0), 0.02)
    engine.hosts[instance.host.name].memory(engine.env.now, 13.0)
    engine.log(instance, "INFO", "glance.api.v2.image_data", f"Image {image} uploaded to store file", context)


def image_delete(engine, context, instance, image, **_):
    yield engine.env.timeout(0)
    engine.hosts[instance.host.name].memory(engine.env.now, -13.0)
    engine.log(instance, "INFO", "glance.location", f"Deleting image {image} from store file", context)


def server_create(engine, context, instance, server, **_):
    try:
        yield from validate_token(engine, context, instance)
        yield from engine.http(context, "image.show", image=engine.ubuntu_image, first=True)
        yield from engine.http(context, "network.list", first=True)
    except CallFailed as failure:
        engine.log(instance, "ERROR", "nova.api.openstack.extensions",
                   f"Unexpected exception in API method: {failure.etype}: {failure.text}", context)
        raise
    yield from engine.rpc_cast(context, "build.schedule", server=server,
                               on_failure=lambda failure: give_up(engine, context, server, failure))


def image_show(engine, context, instance, first=False, **_):
    if first:
        yield from validate_token(engine, context, instance)


def network_first(engine, context, instance, first=False, **_):
    if first:
        yield from validate_token(engine, context, instance)


def give_up(engine, context, server, failure):
    """The conductor marks a server it cannot place."""
    conductor = engine.instance("nova-conductor")
    engine.servers[server].status = "ERROR"
    engine.log(conductor, "WARNING", "nova.scheduler.utils",
               f"Failed to compute_task_build_instances: {failure.text}", context)
    engine.log(conductor, "WARNING", "nova.scheduler.utils",
               f"[instance: {server}] Setting instance to ERROR state.: {failure.etype}", context)


def build_schedule(engine, context, instance, server, excluded=(), **_):
    record = engine.servers[server]
    record.attempts += 1
    host = yield from engine.rpc_call(context, instance, "host.select", server=server, excluded=excluded)
    record.host = host
    yield from engine.rpc_cast(context, "build.run", host=host, server=server)


def host_select(engine, context, instance, server, excluded, **_):
    yield from engine.http(context, "placement.candidates")
    free = {name: host for name, host in engine.hosts.items()
            if name not in excluded and name in engine.compute_weights
            and host.claimed * INSTANCE_MB + 512 + INSTANCE_MB <= MEMORY_MB}
    if not free:
        raise CallFailed("NoValidHost", "No valid host was found. There are not enough hosts available.", 500)
    # The real runs put 43, 27, 26 and 4 % of the instances on the four hosts.
    names = list(free)
    weights = [engine.compute_weights[name] / (1 + free[name].claimed) for name in names]
    host = engine.times.choices(names, weights)[0]
    yield from engine.http(context, "placement.allocate", server=server)
    return host


def release(record: Server, host) -> None:
    """Drops the claim, once: a server can be deleted while it is still being built."""
    if record.claimed:
        host.claimed -= 1
        record.claimed = False


def build_run(engine, context, instance, server, **_):
    """Claim, network, image, spawn; a failure is rescheduled once by the conductor."""
    record, host, node = engine.servers[server], instance.host, instance.host.name
    started = engine.env.now
    log = lambda level, module, text, who=context: engine.log(  # noqa: E731
        instance, level, module, f"[instance: {server}] {text}", who)
    domain = f"{node}.cit.tu-berlin.de" if engine.times.random() < 0.73 else node
    log("INFO", CLAIMS, f"Attempting claim on node {domain}: memory 4096 MB, disk 40 GB, vcpus 2 CPU")
    log("INFO", CLAIMS, f"Total memory: {MEMORY_MB} MB, used: {512 + INSTANCE_MB * host.claimed}.00 MB")
    log("INFO", CLAIMS, "memory limit not specified, defaulting to unlimited")
    log("INFO", CLAIMS, f"Total disk: 9314 GB, used: {40 * host.claimed}.00 GB")
    log("INFO", CLAIMS, "disk limit not specified, defaulting to unlimited")
    log("INFO", CLAIMS, f"Total vcpu: 8 VCPU, used: {2 * host.claimed}.00 VCPU")
    log("INFO", CLAIMS, "vcpu limit not specified, defaulting to unlimited")
    log("INFO", CLAIMS, f"Claim successful on node {domain}")
    host.claimed += 1
    record.claimed = True
    try:
        record.port = engine.uuid()
        yield from engine.http(context, "port.create", port=record.port, host=node, first=True)
        yield from engine.rpc_call(context, instance, "object.save", server=server)
        spawning = engine.env.now
        log("INFO", DRIVER, "Creating image")
        yield from engine.work(instance, engine.lognormal(9.0, 0.2), 0.35)  # copy and resize the disk
        yield from engine.http(context, "port.list", server=server)
        yield from engine.work(instance, engine.lognormal(28.6, 0.12), 0.10)  # define, plug, boot, wait for the port
    except CallFailed as failure:
        release(record, host)
        log("ERROR", MANAGER, f"Instance failed to spawn: {failure.etype}: {failure.text}")
        yield from engine.work(instance, 0.6, 0.5)
        engine.env.process(reschedule(engine, context, server, node, failure))
        return
    except BaseException:  # killed with its process: the claim is dropped when it starts again
        release(record, host)
        engine.orphans.append(server)
        raise
    record.resident = 380.0 + 260.0 * engine.times.random()
    host.memory(engine.env.now - 12.0, record.resident)
    host.charge(engine.env.now - 12.0, 16.0, 16.0 * engine.times.uniform(0.6, 1.6), 0.5)  # the guest boots
    periodic = Context(None, "", "-", "-", engine.event_requests[node]) if engine.times.random() < 0.96 else None
    log("INFO", MANAGER, "VM Started (Lifecycle Event)", periodic)
    log("INFO", MANAGER, "VM Resumed (Lifecycle Event)", periodic)
    log("INFO", DRIVER, "Instance spawned successfully.", None)
    log("INFO", MANAGER, f"Took {engine.env.now - spawning:.2f} seconds to spawn the instance on the hypervisor.")
    for _unused in range(engine.times.choices((1, 2, 3), (78, 597, 44))[0]):
        log("INFO", MANAGER, "During sync_power_state the instance has a pending task (spawning). Skip.", periodic)
    yield from engine.rpc_call(context, instance, "object.save", server=server)
    log("INFO", MANAGER, f"Took {engine.env.now - started:.2f} seconds to build instance.")
    record.status = "ACTIVE"


def reschedule(engine, context, server, node, failure):
    """The conductor tries another host, or gives the server up."""
    record, conductor = engine.servers[server], engine.instance("nova-conductor")
    yield from engine.broker()
    engine.log(conductor, "ERROR", "nova.scheduler.utils",
               f"[instance: {server}] Error from last host: {node} (node {node}.cit.tu-berlin.de): "
               f"{failure.etype}: {failure.text}", context)
    if record.attempts < BUILD_ATTEMPTS:
        yield from engine.rpc_cast(context, "build.schedule", server=server, excluded=(node,),
                                   on_failure=lambda final: give_up(engine, context, server, final))
    else:
        give_up(engine, context, server, CallFailed("MaxRetriesExceeded", "Exceeded maximum number of retries. "
                f"Exhausted all hosts available for retrying build failures for instance {server}."))


def port_create(engine, context, instance, port, host, first=False, **_):
    if first:
        yield from validate_token(engine, context, instance)
    yield from engine.rpc_cast(context, "dhcp.port_create", port=port)
    yield from engine.rpc_cast(context, "ovs.port_update", host=host, port=port)


def ovs_port_update(engine, context, instance, port, **_):
    module = "neutron.plugins.ml2.drivers.openvswitch.agent.ovs_neutron_agent"
    try:
        yield from engine.rpc_call(context, instance, "port.details", port=port)
        engine.log(instance, "INFO", module, f"Port {port} updated. Details: {{u'network_type': u'vxlan', "
                   "u'admin_state_up': True}", context)
        yield from engine.work(instance, engine.lognormal(0.3, 0.3), 0.5)
        yield from engine.rpc_call(context, instance, "port.up", port=port)
        engine.log(instance, "INFO", module, f"Configuration for devices up [u'{port}'] and devices down [] completed.",
                   context)
    except CallFailed as failure:
        engine.log(instance, "ERROR", module, f"Error while processing VIF ports: {failure.etype}: {failure.text}",
                   context)
        raise


def port_up(engine, context, instance, port, **_):
    try:
        yield from engine.http(context, "server.event", port=port)
    except CallFailed as failure:
        engine.log(instance, "ERROR", "neutron.notifiers.nova",
                   f"Failed to notify nova on events: {failure.etype}: {failure.text}", context)


def server_event(engine, context, instance, port, **_):
    server = next((record for record in reversed(engine.servers.values()) if record.port == port), None)
    if server is not None and server.host:
        engine.log(instance, "INFO", "nova.api.openstack.compute.server_external_events",
                   f"Creating event network-vif-plugged:{port} for instance {server.server_id} on {server.host}",
                   context)
        yield from engine.rpc_cast(context, "build.event", host=server.host, server=server.server_id)


def server_show(engine, context, instance, server, **_):
    yield engine.env.timeout(0)
    return 404 if engine.servers[server].status == "DELETED" else 200


def server_delete(engine, context, instance, server, **_):
    record = engine.servers[server]
    if record.host:
        yield from engine.rpc_cast(context, "build.terminate", host=record.host, server=server)
    else:
        record.status = "DELETED"


def build_terminate(engine, context, instance, server, **_):
    try:
        yield from terminate(engine, context, instance, server)
    except CallFailed:
        raise
    except BaseException:  # killed with its process, which takes it up again when it starts
        engine.undeleted.append((instance, server))
        raise


def terminate(engine, context, instance, server):
    record, host = engine.servers[server], instance.host
    started = engine.env.now
    log = lambda level, module, text, who=context: engine.log(  # noqa: E731
        instance, level, module, f"[instance: {server}] {text}", who)
    log("INFO", MANAGER, "Terminating instance")
    yield from engine.work(instance, engine.lognormal(0.45, 0.2), 0.5)
    log("INFO", DRIVER, "Instance destroyed successfully.", None)
    if record.resident:
        host.memory(engine.env.now, -record.resident)
        record.resident = 0.0
    yield from engine.work(instance, engine.lognormal(0.9, 0.5), 0.3)
    log("INFO", DRIVER, f"Deleting instance files /var/lib/nova/instances/{server}_del")
    log("INFO", DRIVER, f"Deletion of /var/lib/nova/instances/{server}_del complete")
    yield from engine.work(instance, engine.lognormal(0.4, 0.15), 0.3)
    log("INFO", MANAGER, f"Took {engine.env.now - started:.2f} seconds to destroy the instance on the hypervisor.")
    release(record, host)
    for attempt in range(4):
        clock = engine.env.now
        try:
            yield from engine.http(context, "port.delete", port=record.port or "none")
            break
        except CallFailed:
            log("WARNING", MANAGER, f"Failed to deallocate network for instance; retrying. Attempt: {attempt + 1}",
                None)
            yield engine.env.timeout(2.0 * 2**attempt)
    log("INFO", MANAGER, f"Took {engine.env.now - clock:.2f} seconds to deallocate network for instance.", None)
    try:
        yield from engine.http(context, "placement.release", server=server)
    except CallFailed as failure:
        engine.log(instance, "WARNING", "nova.scheduler.client.report",
                   f"Unable to delete allocation for instance {server}: {failure.text}", context)
    yield from engine.rpc_call(context, instance, "object.save", server=server)
    record.status = "DELETED"
    delay = 8.5 + 7.0 * engine.times.random()  # libvirt's event comes late
    if engine.times.random() < 0.99:
        engine.log(instance, "INFO", MANAGER, f"[instance: {server}] VM Stopped (Lifecycle Event)",
                   at=engine.env.now + delay)


def network_create(engine, context, instance, network, first=False, **_):
    if first:
        yield from validate_token(engine, context, instance)
    yield from engine.rpc_cast(context, "dhcp.network_create", network=network)


def network_delete(engine, context, instance, network, **_):
    yield from engine.rpc_cast(context, "dhcp.network_delete", network=network)


def dhcp_network_create(engine, context, instance, network, **_):
    try:
        yield from engine.rpc_call(context, instance, "dhcp.info", network=network)
    except CallFailed as failure:
        engine.log(instance, "ERROR", "neutron.agent.dhcp.agent",
                   f"Network {network} info call failed.: {failure.etype}: {failure.text}", context)
        raise
    engine.log(instance, "INFO", "neutron.agent.dhcp.agent",
               f"Finished network {network} dhcp configuration", context)


def dhcp_port_create(engine, context, instance, port, **_):
    yield engine.env.timeout(0)
    engine.log(instance, "INFO", "neutron.agent.dhcp.agent",
               f"Trigger reload_allocations for port admin_state_up=True, id={port}", context)


FLOWS = {
    "image.schema": image_schema,
    "image.show": image_show,
    "image.upload": image_upload,
    "image.delete": image_delete,
    "server.create": server_create,
    "server.show": server_show,
    "server.delete": server_delete,
    "server.event": server_event,
    "build.schedule": build_schedule,
    "host.select": host_select,
    "build.run": build_run,
    "build.terminate": build_terminate,
    "network.list": network_first,
    "network.create": network_create,
    "network.delete": network_delete,
    "port.create": port_create,
    "port.up": port_up,
    "ovs.port_update": ovs_port_update,
    "dhcp.network_create": dhcp_network_create,
    "dhcp.port_create": dhcp_port_create,
}
