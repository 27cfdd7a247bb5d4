"""Is there a Ray cluster at an address? Asked in seconds, because Ray itself takes 20 to 60 to say no.

Each probe is one small request of Ray's own protocol with a deadline, so that a dead host, a port of something
else, a version that differs and a token that is missing are told apart. Nothing here connects as a driver.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from cluster.errors import Unreachable

WANTS_TOKEN = (
    "the cluster asks for a token, and {given}; set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, "
    "in a file named by RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token"
)
TOKEN_NOT_SENT = WANTS_TOKEN.format(given="none was sent")
TOKEN_REFUSED = WANTS_TOKEN.format(given="the one sent is not its own")


def read_token_again() -> None:
    """Make Ray read RAY_AUTH_MODE and the token anew, where it would keep what it once read."""
    from ray import _raylet

    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def token_file(address: str) -> None:
    """Raise `Unreachable` when the file of the token cannot be read, at which Ray would end this process."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN") or not path:
        return
    try:
        empty = not Path(path).read_text().strip()
    except OSError as error:
        reason = f"RAY_AUTH_TOKEN_PATH names {path}: {(error.strerror or str(error)).lower()}"
        raise Unreachable(address, reason) from None
    if empty:
        raise Unreachable(address, f"RAY_AUTH_TOKEN_PATH names {path}, which is empty")


def split(address: str, default_port: int | None = None) -> tuple[str, int]:
    """Split `host:port`, `[::1]:port`, or `host` where there is a default port.

    Raises:
        Unreachable: when it is none of these.
    """
    host, colon, port = address.rpartition(":")
    if (not colon or address.endswith("]")) and default_port is not None:
        host, port = address, str(default_port)
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise Unreachable(address, "an address is local, auto, ray://host:port or host:port")
    return host.strip("[]"), int(port)


def tcp(address: str, host: str, port: int, timeout_s: float) -> None:
    """Open and close a connection.

    Raises:
        Unreachable: naming `address`, with the operating system's reason.
    """
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except TimeoutError:
        raise Unreachable(address, f"{host}:{port} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise Unreachable(address, f"{host}:{port}: {(error.strerror or str(error)).lower()}") from None


def gcs(address: str, timeout_s: float) -> None:
    """Ask the head's control service at `host:port` whether it lives and which Ray it is.

    Raises:
        Unreachable: when it does not, is no Ray, is another version, or refuses our token.
    """
    import ray
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    host, port = split(address)
    tcp(address, host, port, timeout_s)
    reply = _ask(
        address,
        f"{host}:{port}",
        lambda channel: gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).CheckAlive,
        gcs_service_pb2.CheckAliveRequest(),
        timeout_s,
    )
    if reply.ray_version and reply.ray_version != ray.__version__:
        raise Unreachable(address, f"the cluster runs Ray {reply.ray_version}, and this process Ray {ray.__version__}")


def client_server(address: str, timeout_s: float) -> None:
    """Ask the Ray Client server at `ray://host:port` for a sign of life.

    Raises:
        Unreachable: when it gives none, or refuses our token.
    """
    from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

    host, port = split(address.removeprefix("ray://") or address, default_port=10001)
    tcp(address, host, port, timeout_s)
    _ask(
        address,
        f"{host}:{port}",
        lambda channel: ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo,
        ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING),
        timeout_s,
    )


def _ask(address: str, target: str, method: object, request: object, timeout_s: float):  # type: ignore[no-untyped-def]
    import grpc  # type: ignore[import-untyped]
    from ray._private.authentication.grpc_authentication_client_interceptor import _get_authentication_metadata_tuple

    metadata = _get_authentication_metadata_tuple()
    with grpc.insecure_channel(target) as channel:
        try:
            return method(channel)(request, timeout=timeout_s, metadata=metadata)  # type: ignore[operator]
        except grpc.RpcError as error:
            code = error.code()
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        raise Unreachable(address, TOKEN_REFUSED if metadata else TOKEN_NOT_SENT)
    if code == grpc.StatusCode.UNIMPLEMENTED:
        other = "host:port" if address.startswith("ray://") else "ray://host:port"
        raise Unreachable(address, f"Ray may be there, but not this service of it; is it meant as {other}?")
    raise Unreachable(address, f"something listens there, and it does not answer as Ray does ({code.name.lower()})")
