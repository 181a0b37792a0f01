"""Record what a card says of a run, and render the card from the record, so that both can be kept in git.

    python model_cards/record.py outputs/digits --repo me/digits --license apache-2.0
    python model_cards/record.py --again          # render every card anew from its record, after a change of the card

Beside this script stand then NAME.json, the run's facts as the card needs them, and NAME.md, the card as it would be
published with that repository's name; no weights, no images. Takes the keys of `tpssl-hf publish`.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tpssl_hf.config.parser import parse_args
from tpssl_hf.errors import InputError
from tpssl_hf.hub.card import render_card
from tpssl_hf.hub.config import PublishArgs
from tpssl_hf.hub.redaction import publishable, secrets, without_paths, without_secrets
from tpssl_hf.hub.run_record import Base, Evidence, gather
from tpssl_hf.process import run_cli

HERE = Path(__file__).parent


def main() -> int:
    """Record a run and render its card, or render all cards again; returns the exit code."""
    if sys.argv[1:] == ["--again"]:
        for record in sorted(HERE.glob("*.json")):
            write_card(record)
        return 0
    args = parse_args(PublishArgs, ["--run", *sys.argv[1:]], description=__doc__ or "")
    target = args.target
    if "/" not in target.repo:
        raise InputError(f"repo {target.repo!r} is no `owner/name`; give the one the card is to name.")
    facts = asdict(gather(Path(target.run), args.publish)) | {"folder": Path(target.run).name}
    record = HERE / f"{target.repo.partition('/')[2]}.json"
    content = publishable({"repo": target.repo, "evidence": facts}, secrets())
    record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_card(record)
    return 0


def write_card(record: Path) -> None:
    """Render one record."""
    text = card_of(json.loads(record.read_text(encoding="utf-8")))
    record.with_suffix(".md").write_text(text, encoding="utf-8")
    print(record.with_suffix(".md").name)


def card_of(record: dict[str, Any]) -> str:
    """Return the card of a record."""
    facts = record["evidence"]
    base = Base(**facts["base"] | {"steps": tuple(facts["base"]["steps"])})
    evidence = Evidence(**facts | {"folder": Path(facts["folder"]), "base": base})
    return without_paths(without_secrets(render_card(evidence, record["repo"], frozenset()), []))


if __name__ == "__main__":
    run_cli(main)
