"""What is learnt: the network, its checkpoint, and the samplers that use it."""
