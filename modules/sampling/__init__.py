"""From noise to the edited clip."""
