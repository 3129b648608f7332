"""The name that chains use: `dpmrecon.gadget`. See hosts/gadget.py."""

from .hosts.gadget import reconstruct as reconstruct
