"""Who talks to us: the wire, a scan of one peer, the service."""
