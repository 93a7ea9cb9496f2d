"""What is odd about an adapter and yet no error: the merged model would be right, and perhaps not what was wanted."""

from collections.abc import Iterable

from preference_core.ensemble.targets import unmatched_targets
from preference_export.checkpoint.adapter import Adapter


def doubts_of(adapter: Adapter, linear_modules: Iterable[str]) -> list[str]:
    """One sentence for each oddity. Reads the `lora_B` of every module."""
    where = f"Adapter `{adapter.files.folder}`:"
    targets = adapter.config.target_modules
    doubts = [] if isinstance(targets, str) else unmatched_targets(targets or (), linear_modules)
    if adapter.wrappers:
        doubts.append(
            f"the names of its tensors hold {', '.join(adapter.wrappers)}; they are read without. PEFT itself leaves "
            "such tensors out, so a script that loads this folder with it scores without them"
        )
    zero = sorted(module for module, lora in adapter.loras.items() if not adapter.files.read(lora.b).any())
    if zero and len(zero) == len(adapter.loras):
        doubts.append("every `lora_B` is zero, so that it changes nothing but the head. Was it saved before training?")
    elif zero:
        doubts.append(f"`lora_B` of {len(zero)} of {len(adapter.loras)} modules is zero, the first is `{zero[0]}`")
    return [f"{where} {doubt}" for doubt in doubts]
