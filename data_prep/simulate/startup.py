"""What programs log when they are stopped and started (by whoever: a restart is not an injection by itself)."""

EXTENSIONS = ("agent", "availability_zone", "binding", "dhcp_agent_scheduler", "dvr", "extra_dhcp_opt", "l3-ha",
              "multi-provider", "net-mtu", "port-security", "quotas", "security-group")
STOP = {
    "glance-api": (("INFO", "glance.common.wsgi", "SIGTERM or SIGINT received"),
                   ("INFO", "eventlet.wsgi.server", "({pid}) wsgi exited, is_accepting=True")),
    "neutron-server": (("INFO", "oslo_service.service", "Caught SIGTERM, stopping children"),
                       ("INFO", "neutron.wsgi", "({pid}) wsgi exited, is_accepting=True"),
                       ("INFO", "oslo_service.service", "Wait called after thread killed. Cleaning up.")),
    "nova-compute": (("INFO", "oslo_service.service", "Caught SIGTERM, exiting"),),
}
START = {
    "glance-api": (
        ("INFO", "glance.common.wsgi", "Starting {n} workers"),
        ("WARNING", "glance_store._drivers.filesystem", "Since stores are configured deprecated option "
         "filesystem_store_datadir is ignored"),
        *(("INFO", "glance.common.wsgi", "Started child {child}"),) * 4,
        *(("INFO", "eventlet.wsgi.server", "({child}) wsgi starting up on http://130.149.249.123:9292"),) * 4,
    ),
    "neutron-server": (
        ("INFO", "neutron.common.config", "Logging enabled!"),
        ("INFO", "neutron.common.config", "/usr/bin/neutron-server version 14.0.3"),
        ("INFO", "neutron.manager", "Loading core plugin: ml2"),
        ("INFO", "neutron.plugins.ml2.managers", "Configured type driver names: ['flat', 'vlan', 'vxlan']"),
        ("INFO", "neutron.plugins.ml2.managers", "Initializing mechanism driver 'openvswitch'"),
        ("INFO", "neutron.plugins.ml2.plugin", "Modular L2 Plugin initialization complete"),
        ("INFO", "neutron.manager", "Loading Plugin: router"),
        *(("INFO", "neutron.api.extensions", f"Loaded extension: {name}") for name in EXTENSIONS),
        ("WARNING", "stevedore.named", "Could not load neutron.services.metering"),
        *(("INFO", "oslo_service.service", "Starting 1 workers"),) * 2,
        ("INFO", "neutron.wsgi", "({child}) wsgi starting up on http://130.149.249.123:9696"),
    ),
    "nova-compute": (
        ("INFO", "os_vif", "Loaded VIF plugins: ovs, linux_bridge, noop"),
        ("INFO", "nova.virt.driver", "Loading compute driver 'libvirt.LibvirtDriver'"),
        ("WARNING", "oslo_config.cfg", "Deprecated: Option \"use_neutron\" from group \"DEFAULT\" is deprecated for "
         "removal"),
        ("INFO", "nova.service", "Starting compute node (version 19.0.3)"),
        ("INFO", "nova.virt.libvirt.driver", "Connection event '1' reason 'None'"),
        ("INFO", "nova.virt.libvirt.host", "Libvirt host capabilities <capabilities>"),
        ("INFO", "nova.compute.manager", "Looking for unclaimed instances stuck in BUILDING status for nodes managed "
         "by this host"),
    ),
}


def shut_down_lines(engine, instance) -> None:
    """The last lines of a program that is told to stop."""
    for level, module, text in STOP[instance.program.name]:
        engine.log(instance, level, module, text.format(pid=instance.pid, n=8, child=0))


def start_up_lines(engine, instance) -> None:
    """The first lines of a program that starts, over about two seconds."""
    at = engine.env.now
    for level, module, text in START[instance.program.name]:
        at += engine.ids.uniform(0.005, 0.2)
        engine.log(instance, level, module,
                   text.format(pid=instance.pid, n=8, child=engine.ids.randrange(20, 60)), at=at)
