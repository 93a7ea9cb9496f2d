"""How many queries attend together; `blocks` divides a graph accordingly."""

#: Queries that attend together, and the most such blocks; members of longer texts get larger blocks.
BLOCK, MOST_BLOCKS = 128, 8


def block_size(max_tokens: int) -> int:
    """Queries of each sequence that attend together, where sequences have up to `max_tokens` tokens."""
    return BLOCK * -(-max_tokens // (BLOCK * MOST_BLOCKS))
