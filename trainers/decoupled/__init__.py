"""Local learning over workers: each owns modules, sends activations on before it learns, and hears no gradients."""
