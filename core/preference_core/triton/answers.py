"""What a served ensemble says when it has no prediction: texts by which callers tell one failure from another.

`preference_core.ensemble.combination` has the one of a member that overflows.
"""

#: How a defect of this project's own models begins to speak: the same battle would meet it again.
INTERNAL_ERROR = "internal error: "
#: How a door that has too much to do begins to speak.
OVERLOADED = "Overloaded: "
#: In what Triton says, then or later, of a model whose process has died.
DEAD_PROCESS = "Stub process"
