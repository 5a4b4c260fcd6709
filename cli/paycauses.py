"""Which rows made a request of many rows be rejected for a recipient (cli.paybulk tells them).

The answer to such a request names no row. So the network is asked what the accounts hold, each once in a run: that is
as it is now, which may be after somebody has put it right. What cannot be found out blames no row.
"""

from collections.abc import Sequence
from typing import Final

import anyio

from cli.paybatches import Part
from cli.payplan import Plan
from hopchain import Balance, Client, ClientError, NotFound
from hopchain.workers import work_on_each

_SHOWN: Final = 5  # in the reason of every row of a request, which may have thousands


class RecipientCauses:
    """What the accounts of one run hold, as far as rejections made it ask. Any number of tasks may share it."""

    def __init__(self, plan: Plan) -> None:
        self._rows = plan.rows
        self._at_once = plan.settings.concurrency
        self._assets: dict[str, str | None] = {}  # None for an account that does not exist
        self._asking = anyio.Lock()

    async def find(self, client: Client, part: Part) -> tuple[dict[int, str], str]:
        """Rows whose recipients cannot be paid as things are now, each with why, and the same in short for all rows."""
        rows, sender = part.rows, part.batch.sender
        async with self._asking:
            await self._ask_assets(client, [sender, *(self._rows[index].recipient for index in rows)])
        causes: dict[int, str] = {}
        for index in rows:
            recipient = self._rows[index].recipient
            held = self._assets.get(recipient, "")
            if held is None:
                causes[index] = f"there is no account {recipient}"
            elif held and self._assets.get(sender) not in (None, held):
                causes[index] = f"{recipient} holds {held} and {sender} {self._assets[sender]}"
        if not causes:
            known = {sender, *(self._rows[index].recipient for index in rows)} <= self._assets.keys()
            return {}, "; all recipients can be paid now: --retry-rejected sends them once more" if known else ""
        shown = [f"line {self._rows[index].line}: {why}" for index, why in list(causes.items())[:_SHOWN]]
        more = f"; and {len(causes) - len(shown)} more" if len(causes) > len(shown) else ""
        return causes, f"; because of {'; '.join(shown)}{more}"

    async def _ask_assets(self, client: Client, names: Sequence[str]) -> None:
        """What these accounts hold, asked once a run; None for one that a majority does not know. What cannot be found
        out stays out."""

        async def ask(name: str) -> None:
            try:
                answer = await client.balance(name)
                if isinstance(answer, NotFound):
                    answer = await client.balance(name, linearizable=True)
            except ClientError:
                return
            if isinstance(answer, Balance):
                self._assets[name] = answer.asset
            elif isinstance(answer, NotFound) and not answer.stale:
                self._assets[name] = None

        fresh = [name for name in dict.fromkeys(names) if name not in self._assets]
        await work_on_each(fresh, ask, at_once=self._at_once)
