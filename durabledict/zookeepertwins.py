"""Make a client of the same settings as another: `os.fork` leaves its threads in the parent."""

from __future__ import annotations

from kazoo.client import KazooClient

__all__ = ["hosts_of", "twin"]


def twin(client: KazooClient) -> KazooClient:
    """Return a client with the same settings, not started."""
    # Where kazoo has no public name for a setting, and no copy of a client.
    connection = vars(client).get("_connection")
    # kazoo 2.9 does not look at host names yet.
    newer = {name: vars(client)[name] for name in ("check_hostname",) if name in vars(client)}
    return KazooClient(
        hosts=hosts_of(client) + client.chroot,
        timeout=float(vars(client).get("_session_timeout", 10_000)) / 1000,
        handler=type(client.handler)(),
        default_acl=client.default_acl,
        auth_data=set(client.auth_data),
        sasl_options=getattr(connection, "sasl_options", None),
        read_only=client.read_only,
        randomize_hosts=client.randomize_hosts,
        connection_retry=vars(client)["_conn_retry"].copy(),
        command_retry=vars(client)["_retry"].copy(),
        logger=client.logger,
        keyfile=client.keyfile,
        keyfile_password=client.keyfile_password,
        certfile=client.certfile,
        ca=client.ca,
        use_ssl=client.use_ssl,
        verify_certs=client.verify_certs,
        **newer,
    )


def hosts_of(client: KazooClient) -> str:
    """Return the servers of a client, as they are written."""
    return ",".join(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in client.hosts
    )
