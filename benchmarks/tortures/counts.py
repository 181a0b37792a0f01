"""The counts of a torture: how often something was tried, how often the promise held, and what broke it."""

from dataclasses import dataclass, field


@dataclass
class Count:
    """One row of the table.

    Attributes:
        what: was tried.
        promise: what must come of it.
        tried: how often.
        broken: a sentence for each time the promise was not kept.
    """

    what: str
    promise: str
    tried: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, name: str, trouble: str | None) -> None:
        """Count one try, whose ``trouble`` is None if the promise was kept."""
        self.tried += 1
        if trouble is not None:
            self.broken.append(f"{name}: {trouble}")

    def row(self) -> str:
        """Return the row of a Markdown table."""
        return f"| {self.what} | {self.promise} | {self.tried - len(self.broken)} of {self.tried} |"
