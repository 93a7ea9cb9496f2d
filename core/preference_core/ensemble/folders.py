"""Every path below `build/NAME`, where all that is generated for an ensemble goes. It reads none of it."""

from pathlib import Path


class Folders:
    """The paths of the ensemble called `name`, relative to the working directory."""

    def __init__(self, name: str) -> None:
        self.root = Path("build") / name
        self.source = self.root / "source" / "battles.csv"  # generated battles, not yet split
        self.data = self.root / "data"  # training, validation and test battles
        self.baseline = self.root / "baseline"
        self.validation_predictions = self.root / "validation_predictions.csv"
        self.weights = self.root / "weights.toml"
        self.repository = self.root / "repository"
        self.previous_repository = self.root / "repository.previous"
        self.server_log = self.root / "server.log"
        self.predictions = self.root / "predictions.csv"

    def base(self, member: str) -> Path:
        """A generated tiny base."""
        return self.root / "bases" / member

    def adapter(self, member: str) -> Path:
        """A trained adapter."""
        return self.root / "adapters" / member

    def merged(self, member: str) -> Path:
        """The checkpoint with its adapters merged."""
        return self.root / "merged" / member

    def calibration(self, member: str) -> Path:
        """Measured ranges of activations."""
        return self.root / "calibrations" / member

    def original(self, member: str) -> Path:
        """What the original model answered."""
        return self.root / "originals" / member

    def exported(self, member: str) -> Path:
        """ONNX model and tokenizer."""
        return self.root / "members" / member

    def engine(self, member: str) -> Path:
        """The TensorRT engine."""
        return self.root / "engines" / member
