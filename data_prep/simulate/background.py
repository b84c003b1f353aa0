"""What a cloud does without being asked: periodic tasks, state reports, other users, cron jobs, rare warnings.

None of it is a fault; much of it looks like one for a moment. All of it goes through the same programs, so
that it feels the faults too.
"""

import random

from data_prep.simulate.cluster import ADDRESS, COMPUTES, CONTROLLER, HOSTS, MEMORY_MB
from data_prep.simulate.state import CallFailed, Context, LogLine

AGENTS = (("neutron-dhcp-agent", CONTROLLER), ("neutron-l3-agent", CONTROLLER),
          *(("neutron-openvswitch-agent", host) for host in HOSTS))
RARE = (
    ("nova-compute", "WARNING", "nova.virt.libvirt.driver",
     "This host appears to have multiple sockets per NUMA node. The `socket` PCI NUMA affinity will not be supported."),
    ("nova-compute", "WARNING", "nova.compute.manager",
     "While synchronizing instance power states, found {a} instances in the database and {b} instances on the "
     "hypervisor."),
    ("neutron-server", "WARNING", "neutron.pecan_wsgi.hooks.translation", "GET failed (client error): The resource "
     "could not be found."),
    ("neutron-server", "INFO", "neutron.db.agents_db", "Heartbeat received from DHCP agent on host wally113, uuid {u} "
     "after 0:00:{s:02d}.{m}"),
    ("glance-api", "WARNING", "glance.api.v2.images", "Failed to find image {u} to delete"),
    ("keystone", "WARNING", "keystone.common.wsgi", "Authorization failed. The request you have made requires "
     "authentication. from 130.149.249.{o}"),
    ("nova-conductor", "WARNING", "oslo_db.sqlalchemy.engines", "SQL connection failed. {b} attempts left."),
    ("nova-api", "INFO", "nova.api.openstack.wsgi", "HTTP exception thrown: Instance {u} could not be found."),
    ("neutron-openvswitch-agent", "WARNING",
     "neutron.plugins.ml2.drivers.openvswitch.agent.ovs_neutron_agent", "Device {u} not defined on plugin or binding "
     "failed"),
    ("neutron-l3-agent", "WARNING", "oslo.service.loopingcall", "Function 'neutron.agent.l3.agent.L3NATAgent"
     "WithStateReport._report_state' run outlasted interval by {b}.{m} sec"),
    ("nova-compute", "WARNING", "oslo.service.loopingcall", "Function 'nova.servicegroup.drivers.db.DbDriver."
     "_report_state' run outlasted interval by {b}.{m} sec"),
    ("nova-compute", "ERROR", "nova.virt.libvirt.driver", "Failed to get the list of block devices of {u}: Domain not "
     "found"),
    ("neutron-server", "ERROR", "neutron.plugins.ml2.managers", "Failed to bind port {u} on host wally113 for "
     "vnic_type normal"),
    ("neutron-dhcp-agent", "WARNING", "neutron.agent.dhcp.agent", "Unable to enable dhcp for {u}: it is being deleted"),
)


class Background:
    """Starts the periodic processes of every host and program on an engine."""

    def __init__(self, engine, seed: int):
        self.engine = engine
        self.random = random.Random(f"{seed}/background")
        start = engine.env.process
        for host in COMPUTES:
            start(self._every(60.0, 1.5, self._update_resources, host))
            start(self._every(61.0, 2.0, self._refresh_network_cache, host))
            start(self._every(121.0, 3.0, self._sync_instances, host))
            start(self._every(900.0, 60.0, self._check_images, host))
        for program, host in AGENTS:
            start(self._every(30.0, 0.5, self._report_state, program, host))
        for host in HOSTS:
            start(self._random(700.0, self._cron, host))
        start(self._random(18.0, self._other_users))
        start(self._random(25.0, self._broker_connections))
        start(self._random(45.0, self._database_connections))
        start(self._random(240.0, self._rare_line))
        start(self._random(600.0, self._fluentd))
        start(self._every(300.0, 5.0, self._router_update))

    def _every(self, seconds: float, jitter: float, task, *arguments):
        yield self.engine.env.timeout(seconds * self.random.random())
        while True:
            yield from task(*arguments)
            yield self.engine.env.timeout(seconds + self.random.uniform(-jitter, jitter))

    def _random(self, mean: float, task, *arguments):
        while True:
            yield self.engine.env.timeout(self.random.expovariate(1.0 / mean))
            yield from task(*arguments)

    def _wait_until_up(self, instance):
        if instance.down is not None:
            yield instance.down

    def _update_resources(self, host):
        engine, instance = self.engine, self.engine.instance("nova-compute", host)
        yield from self._wait_until_up(instance)
        context = Context(None, "", "-", "-", engine.periodic_requests[host])
        claimed = engine.hosts[host].claimed
        try:
            yield from engine.work(instance, engine.lognormal(0.25, 0.3), 0.7)
            provider = engine.providers[host]
            yield from engine.http(context, "placement.inventory", provider=provider)
            yield from engine.http(context, "placement.aggregates", provider=provider)
            yield from engine.rpc_call(context, instance, "object.save", retries=0)
            engine.log(instance, "INFO", "nova.compute.resource_tracker",
                       f"Final resource view: name={host}.cit.tu-berlin.de phys_ram={MEMORY_MB}MB "
                       f"used_ram={512 + 4096 * claimed}MB phys_disk=9314GB used_disk={40 * claimed}GB total_vcpus=8 "
                       f"used_vcpus={2 * claimed} pci_stats=[]", context)
        except CallFailed as failure:
            engine.log(instance, "ERROR", "nova.compute.manager",
                       f"Error updating resources for node {host}.cit.tu-berlin.de.: {failure.etype}: {failure.text}",
                       context)

    def _refresh_network_cache(self, host):
        engine, instance = self.engine, self.engine.instance("nova-compute", host)
        yield from self._wait_until_up(instance)
        present = [record for record in engine.servers.values() if record.host == host and record.status == "ACTIVE"]
        if not present:
            return
        context = Context(None, "", "-", "-", engine.periodic_requests[host])
        try:
            yield from engine.http(context, "port.list", server=present[0].server_id)
        except CallFailed as failure:
            engine.log(instance, "ERROR", "nova.compute.manager",
                       f"[instance: {present[0].server_id}] An error occurred while refreshing the network cache.: "
                       f"{failure.etype}: {failure.text}", context)

    def _sync_instances(self, host):
        engine, instance = self.engine, self.engine.instance("nova-compute", host)
        yield from self._wait_until_up(instance)
        yield from engine.broker()
        scheduler = engine.instance("nova-scheduler")
        if engine.luck.random() >= scheduler.loss_share:
            engine.log(scheduler, "INFO", "nova.scheduler.host_manager",
                       f"Successfully synced instances from host '{host}'.")

    def _check_images(self, host):
        engine, instance = self.engine, self.engine.instance("nova-compute", host)
        yield from self._wait_until_up(instance)
        path = f"/var/lib/nova/instances/_base/{engine.base_file}"
        module = "nova.virt.libvirt.imagecache"
        engine.log(instance, "INFO", module, f"image {engine.ubuntu_image} at ({path}): checking")
        yield from engine.work(instance, engine.lognormal(1.5, 0.4), 0.5)
        engine.log(instance, "INFO", module, f"Active base files: {path}")

    def _report_state(self, program, host):
        engine, instance = self.engine, self.engine.instance(program, host)
        context = Context(None, "", "-", "-", engine.periodic_requests[host])
        try:
            yield from engine.rpc_call(context, instance, "agent.report", retries=0)
        except CallFailed as failure:
            module = instance.program.error_module
            engine.log(instance, "ERROR", module, f"Failed reporting state!: {failure.etype}: {failure.text}", context)

    def _other_users(self):
        """Somebody looks at the dashboard."""
        engine = self.engine
        context = Context(None, "", *engine.operator, "")
        name = self.random.choice(("network.list", "image.schema", "identity.version", "identity.validate"))
        try:
            yield from engine.http(context, name)
        except CallFailed:
            pass

    def _broker_connections(self):
        engine, broker = self.engine, self.engine.instance("rabbitmq")
        host, port = self.random.choice(HOSTS), self.random.randrange(32768, 61000)
        process = f"<0.{self.random.randrange(3000, 32000)}.{self.random.randrange(0, 90)}>"
        pair = f"({ADDRESS[host]}:{port} -> {ADDRESS[CONTROLLER]}:5672)"
        engine.log(broker, "INFO", "", f"accepting AMQP connection {process} {pair}")
        yield engine.env.timeout(self.random.uniform(0.01, 3.0))
        if self.random.random() < 0.85:
            engine.log(broker, "INFO", "", f"closing AMQP connection {process} {pair}")
        else:
            engine.log(broker, "WARNING", "", f"closing AMQP connection {process} {pair}: client unexpectedly closed "
                       "TCP connection")

    def _database_connections(self):
        engine = self.engine
        name = self.random.choice(("nova", "nova_api", "neutron", "glance", "keystone", "placement"))
        yield engine.env.timeout(0)
        engine.log(engine.instance("mariadb"), "WARNING", "",
                   f"[Warning] Aborted connection {self.random.randrange(1000, 90000)} to db: '{name}' user: '{name}' "
                   f"host: '{ADDRESS[CONTROLLER]}' (Got timeout reading communication packets)")

    def _rare_line(self):
        program, level, module, text = self.random.choice(RARE)
        yield self.engine.env.timeout(0)
        instance = self.random.choice(self.engine.every(program))
        values = {"u": self.engine.uuid(), "a": self.random.randrange(0, 4), "b": self.random.randrange(1, 9),
                  "s": self.random.randrange(1, 60), "m": self.random.randrange(100000, 999999),
                  "o": self.random.randrange(2, 250)}
        self.engine.log(instance, level, module, text.format(**values))

    def _fluentd(self):
        """The log collector's own rows: no host, no program, a message and its retry columns."""
        yield self.engine.env.timeout(0)
        chunk = f"{self.random.getrandbits(128):032x}"
        text = self.random.choice(("failed to flush the buffer.", "retry succeeded.", "detached forwarding server"))
        extra = {"chunk": chunk, "chunk_id": chunk, "message": text, "worker": "0"}
        if text.startswith("failed"):
            extra |= {"error": "#<Fluent::Plugin::ElasticsearchOutput::RecoverableRequestFailure>",
                      "next_retry_seconds": f"{self.random.uniform(1, 30):.3f}", "retry_time": "1.0"}
        self.engine.logs.append(LogLine(self.engine.env.now, "", "", "", "", "", "", extra=extra))

    def _router_update(self):
        engine = self.engine
        yield from engine.work(engine.instance("neutron-l3-agent"), engine.lognormal(0.4, 0.3), 0.6)
        engine.log(engine.instance("neutron-l3-agent"), "INFO", "neutron.agent.l3.agent",
                   f"Finished a router update for {engine.router}")

    def _cron(self, host):
        """A cron job or log rotation: some CPU, some page cache, for half a minute."""
        engine, machine = self.engine, self.engine.hosts[host]
        seconds, cores = self.random.uniform(5.0, 40.0), self.random.uniform(0.4, 1.6)
        memory = self.random.uniform(20.0, 180.0)
        machine.charge(engine.env.now, seconds, cores * seconds, cores)
        machine.memory(engine.env.now, memory)
        machine.active += cores
        yield engine.env.timeout(seconds)
        machine.active -= cores
        machine.memory(engine.env.now, -memory)
