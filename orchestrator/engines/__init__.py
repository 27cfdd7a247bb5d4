"""The engines that drive strategies: each turns an experiment into a stream of steps, and knows nothing of
run directories, tracking or terminals."""
