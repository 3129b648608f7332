"""dpmtrain: produces the checkpoints that dpmrecon samples from."""
