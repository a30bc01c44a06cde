"""What carries out every experiment: plans of units, run folders, configs, costs, shards and interruptions."""
