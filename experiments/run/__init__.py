"""What carries out every experiment: studies, run folders, configs, costs, shards."""
