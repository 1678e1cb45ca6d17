"""What a store of maps tells of its model: measures of each map, how each class splits, and what is suspicious."""
