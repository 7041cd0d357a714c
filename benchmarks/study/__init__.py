"""Studies of pruning methods: from a plan (YAML) to rows of accuracy and cost, target by target."""
