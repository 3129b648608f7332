"""Is the service ready? `python -m dpmrecon.health [--port 9020]` asks it and says so; exit code 0, else 1.

Asked on its own port, with a config name of our own. The service listens at once, and answers when its model is loaded:
no answer means that it loads still. Where its device hangs it says so. Light: an image's HEALTHCHECK starts it every
few seconds.
"""

import argparse
import socket
import struct
import sys
from typing import Any

from ..files import from_json

NAME = "dpmrecon_health"  # the config name that asks
CONFIG_NAME, TEXT = 1, 5  # as in wire.py, whose imports take a second
LARGEST_ANSWER = 1 << 16  # bytes


def ask(address: str, port: int, patience: float = 4.0) -> dict[str, Any]:
    """What the service says of itself. Raises OSError where nobody answers, ValueError where somebody else does."""
    with socket.create_connection((address, port), patience) as connection, connection.makefile("rb") as stream:
        connection.sendall(struct.pack("<H1024s", CONFIG_NAME, NAME.encode()))
        head = stream.read(6)
        if len(head) < 6:
            raise ValueError("it hung up")
        number, length = struct.unpack("<HI", head)
        if number != TEXT or length > LARGEST_ANSWER:
            raise ValueError(f"it answers with message {number}")
        answer = from_json(stream.read(length).rstrip(b"\0"))
        if not isinstance(answer, dict) or "model" not in answer:
            raise ValueError("it names no model")
        return answer


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m dpmrecon.health", description="Is the service ready?")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9020)
    parser.add_argument("--patience", type=float, default=4.0, metavar="SECONDS", help="to wait for an answer")
    args = parser.parse_args(arguments)
    try:
        answer = ask(args.address, args.port, args.patience)
    except TimeoutError:
        print(
            f"not ready: no answer on {args.address} port {args.port} within {args.patience:g} s, the model loads still"
        )
    except OSError as error:
        print(f"not ready: nothing listens on {args.address} port {args.port} ({error.strerror})")
    except ValueError as error:
        print(f"not ready: {args.address} port {args.port} is no dpmrecon service ({error})")
    else:
        if answer.get("stuck"):
            print(f"stuck: {answer['stuck']}: end the service, so that it is started again")
            return 1
        print("ready: " + ", ".join(f"{name} {value}" for name, value in answer.items() if value is not None))
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
