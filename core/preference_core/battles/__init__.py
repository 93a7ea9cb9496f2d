"""From a battle to the ids that a member reads."""
