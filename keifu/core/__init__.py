"""What every floor shares: the one error type, the registry, option loading, machine facts."""
