"""Which modules of a base an adapter's `target_modules` name, by PEFT's rule: a module is called so, or ends so."""

from collections.abc import Iterable

from preference_core.errors import nearest


def unmatched_targets(targets: Iterable[str], modules: Iterable[str]) -> list[str]:
    """A sentence for each target that names none of `modules`: PEFT says nothing if another one does."""
    dotted = [f".{module}" for module in modules]
    names = {module.rpartition(".")[2] for module in dotted}
    return [
        f"`target_modules` names `{target}`, and no linear layer of the base is called so. {nearest(target, names)}"
        for target in sorted(targets)
        if not any(module.endswith(f".{target}") for module in dotted)
    ]
