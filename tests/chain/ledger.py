"""The reference ledger: what requests mean, in forty lines without links, hashes or confirmations.

Money that was sent is the recipient's at once. One dict of funds, one of outcomes.
"""

from chain.link import Outcome
from chain.request import Kind, Request, RequestId


class Ledger:
    def __init__(self, issuers: dict[str, str]) -> None:
        self.asset = dict(issuers)
        self.issuers = set(issuers)
        self.funds = dict.fromkeys(issuers, 0)
        self.outcomes: dict[tuple[str, RequestId], Outcome] = {}

    def execute(self, request_id: RequestId, request: Request, height: int) -> Outcome:
        """The outcome of the request in a link of this height; the first one stands."""
        key = (request.sender, request_id)
        if key not in self.outcomes:
            self.outcomes[key] = self._execute(request, height)
        return self.outcomes[key]

    def _execute(self, request: Request, height: int) -> Outcome:
        sender = request.sender
        if height > request.valid_until_height:
            return Outcome.EXPIRED
        if request.kind is Kind.OPEN:
            self.asset[sender], self.funds[sender] = request.asset, 0
        elif request.kind is Kind.CANCEL:
            if (sender, request.target) in self.outcomes:
                return Outcome.ALREADY_DECIDED
            self.outcomes[sender, request.target] = Outcome.CANCELLED
        else:
            return self._pay(request)
        return Outcome.COMPLETED

    def _pay(self, request: Request) -> Outcome:
        sender, recipients = request.sender, [p.recipient for p in request.postings]
        if any(name not in self.asset for name in recipients):
            return Outcome.UNKNOWN_RECIPIENT
        if any(self.asset[name] != self.asset[sender] for name in recipients):
            return Outcome.ASSET_MISMATCH
        same = [name for name in self.issuers if self.asset[name] == self.asset[sender]]
        limit = (2**63 - 1) // len(same) if sender in self.issuers else 0
        if self.funds[sender] - request.total < -limit:
            return Outcome.ISSUER_LIMIT if sender in self.issuers else Outcome.INSUFFICIENT_FUNDS
        self.funds[sender] -= request.total
        for posting in request.postings:
            self.funds[posting.recipient] += posting.amount
        return Outcome.COMPLETED
