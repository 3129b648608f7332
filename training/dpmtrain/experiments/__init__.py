"""What a prior needs, measured with small networks: perfect data or not, parameters, images seen."""
