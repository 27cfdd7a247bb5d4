"""ZeRO on DeepSpeed's engine: ranks that share a batch, and between them the states of one model."""
