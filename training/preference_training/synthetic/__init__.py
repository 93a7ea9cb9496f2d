"""Generated battles, tiny bases and twins, for machines without the real ones."""
