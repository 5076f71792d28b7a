"""The service manager's notification protocol (sd_notify): one datagram says that a daemon is ready or stopping.

systemd gives a service the address in `NOTIFY_SOCKET`; `insite serve` gives its children one of the same kind.
"""

import os
import socket


def notify(message: str) -> None:
    """Send `READY=1`, `STOPPING=1`, … to the service manager; without one, nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(message.encode())
