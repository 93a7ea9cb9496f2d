"""Divides attention into blocks of queries, each against the keys it may see: no work on what the mask hides anyway.

It rewrites a graph that has its precision already, and knows of attention only what a graph shows: a matrix product
whose result passes a softmax on its way into another one.
"""

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from preference_export.graph.block_size import block_size

#: As the end of a slice: wherever the tensor ends.
NO_END = 2**31 - 1


def block_bounds(max_tokens: int) -> list[tuple[int, int]]:
    """Start and end of each block of queries; the last one has no end, so that longer sequences are exact, too."""
    size = block_size(max_tokens)
    starts = range(0, max_tokens, size)
    return [(start, start + size) for start in starts[:-1]] + [(starts[-1], NO_END)]


def write_blocks(model: ir.Model, max_tokens: int, share: int, windows: Sequence[int | None]) -> None:
    """Divides the attention of every layer but the last, whose only queries are the last tokens.

    `windows` has, for each layer, how many keys a query sees, its own included; None: all before it. Queries are
    `[sequences, groups, tokens * share, head_dim]`, keys `[.., head_dim, tokens]`, values `[.., tokens, head_dim]`, the
    mask `[tokens * share, tokens]`. Bounds beyond the longest sequence are cut off there, so that the blocks behind it
    are empty and one graph serves all lengths.
    """
    blocks = block_bounds(max_tokens)
    if len(blocks) == 1:
        return
    writer = _Writer(model.graph)
    softmaxes = [node for node in model.graph if node.op_type == "Softmax"]
    for softmax, window in zip(softmaxes[:-1], windows[:-1], strict=True):
        writer.divide(_chain(softmax), blocks, share, window)


def _chain(softmax: ir.Node) -> list[ir.Node]:
    """The nodes from the product of queries and keys to that of probabilities and values, both included."""
    chain = [softmax]
    while chain[0].op_type != "MatMul":
        scores = chain[0].inputs[0]
        producer = scores.producer() if scores is not None else None
        assert producer is not None, chain[0].name
        chain.insert(0, producer)
    while chain[-1].op_type != "MatMul":
        ((consumer, _),) = chain[-1].outputs[0].uses()
        chain.append(consumer)
    return chain


class _Writer:
    """Inserts nodes into a graph. A mask is cut once, for all layers."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._masks: dict[tuple[int, str | None], ir.Value] = {}
        self._constants: dict[int, ir.Value] = {}
        self._count = 0

    def divide(
        self, chain: Sequence[ir.Node], blocks: Sequence[tuple[int, int]], share: int, window: int | None
    ) -> None:
        """Replaces `chain` by one for each block, and joins what they return."""
        product, at = chain[0], chain[-1]
        query, key, value = product.inputs[0], product.inputs[1], at.inputs[1]
        contexts = []
        for start, end in blocks:
            rows = (share * start, min(share * end, NO_END))
            keys = (0 if window is None else max(0, start - window + 1), end)
            current = self._new(at, "MatMul", [self._part(at, query, -2, *rows), self._part(at, key, -1, *keys)])
            for node in chain[1:-1]:
                others = node.inputs[1:]
                if node.op_type == "Add":
                    others = [self._mask(at, others[0], rows, keys)]
                current = self._new(at, node.op_type, [current, *others], node.attributes.values())
            contexts.append(self._new(at, "MatMul", [current, self._part(at, value, -2, *keys)]))
        joined = self._new(at, "Concat", contexts, [ir.AttrInt64("axis", -2)])
        ir.convenience.replace_all_uses_with(at.outputs[0], joined)
        self.graph.remove(chain, safe=True)

    def _mask(self, at: ir.Node, mask: ir.Value | None, rows: tuple[int, int], keys: tuple[int, int]) -> ir.Value:
        assert mask is not None
        key = (rows[0], mask.name)
        if key not in self._masks:
            self._masks[key] = self._part(at, self._part(at, mask, -2, *rows), -1, *keys)
        return self._masks[key]

    def _part(self, at: ir.Node, whole: ir.Value | None, axis: int, start: int, end: int) -> ir.Value:
        if (start, end) == (0, NO_END):
            assert whole is not None
            return whole
        return self._new(at, "Slice", [whole, *(self._constant(at, number) for number in (start, end, axis))])

    def _constant(self, at: ir.Node, number: int) -> ir.Value:
        if number not in self._constants:
            self._constants[number] = self._new(at, "Constant", [], [ir.AttrInt64s("value_ints", [number])])
        return self._constants[number]

    def _new(
        self, at: ir.Node, kind: str, inputs: Sequence[ir.Value | None], attributes: Iterable[ir.Attr] = ()
    ) -> ir.Value:
        """The output of a new node before `at`, named after its module."""
        self._count += 1
        name = f"{str(at.name).partition('/')[0]}/{kind}_b{self._count}"
        made = ir.Node("", kind, inputs, list(attributes), name=name)
        made.outputs[0].name = name
        self.graph.insert_before(at, made)
        return made.outputs[0]
