"""Everything about single neurons: who fires how often, who is computed, and files stored by neuron."""
