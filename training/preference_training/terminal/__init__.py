"""What a person sees in a terminal: results, stages and bars."""
