"""Local learning over workers: each owns some modules, sends activations on before it learns, and hears no gradients."""
