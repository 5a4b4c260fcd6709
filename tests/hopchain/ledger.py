"""A ledger in a dictionary that answers the client protocol: what fake nodes share. No consensus, no disk, no keys
checked but the one that signs."""

import hashlib

import msgspec

from chain.genesis import Genesis, issuer_links
from chain.link import Outcome, opening_slot
from chain.request import ANY_TIP, Kind, Request, SignedRequest, decode_request_untrusted, is_signed_by
from hopchain import wire

TIME_MS = 1_700_000_000_000


class Account(msgspec.Struct):
    """One account: its links as the protocol shows them, and money that waits."""

    name: str
    asset: str
    public_key: bytes
    issuer: bool
    links: list[wire.ChainLink]
    settled: int = 0
    incoming: int = 0
    incoming_count: int = 0

    @property
    def tip(self) -> bytes:
        return self.links[-1].hash

    @property
    def height(self) -> int:
        return self.links[-1].height


class Ledger:
    """All accounts and outcomes. `submits` counts calls, `executed` requests that got their outcome."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.accounts: dict[str, Account] = {}
        self.recorded: dict[bytes, wire.Recorded] = {}
        self.submits = 0
        for issuer, link in zip(genesis.issuers, issuer_links(genesis), strict=True):
            key = bytes.fromhex(issuer.public_key)
            account = Account(issuer.name, issuer.asset, key, True, [])
            account.links.append(_link(link.hash, 0, link.prev_hash, 0, (), ()))
            self.accounts[issuer.name] = account

    @property
    def executed(self) -> int:
        return len(self.recorded)

    def open(self, name: str, asset: str, public_key: bytes) -> None:
        """Open an account without a request, for the start of a test."""
        account = Account(name, asset, public_key, False, [])
        account.links.append(_link(hashlib.sha256(name.encode()).digest(), 0, bytes(32), 0, (), ()))
        self.accounts[name] = account

    def submit(self, call: wire.Submit, decided_by: bytes) -> wire.Recorded | wire.Stale | wire.Refused:
        self.submits += 1
        signed = SignedRequest(call.raw, call.signature)
        request = decode_request_untrusted(call.raw)
        done = self.recorded.get(signed.request_id)
        if done is not None:
            return msgspec.structs.replace(done, repeated=True)
        account = self.accounts.get(request.sender)
        if request.kind is Kind.OPEN:
            if not is_signed_by(signed, request.public_key):
                return wire.Refused("bad_signature", "the request is not signed with the account's key")
            if account is not None:
                return wire.Refused("name_taken", f"{request.sender} belongs to somebody else: choose another name")
            return self._open(request, signed.request_id, decided_by)
        if account is None:
            return wire.Refused("unknown_sender", f"there is no account {request.sender}: open it first")
        if not is_signed_by(signed, account.public_key):
            return wire.Refused("bad_signature", "the request is not signed with the account's key")
        if request.expect_tip not in (ANY_TIP, account.tip):
            return wire.Stale(signed.request_id, account.tip, account.height)
        return self._execute(account, request, signed.request_id, decided_by)

    def _open(self, request: Request, request_id: bytes, decided_by: bytes) -> wire.Recorded:
        account = Account(request.sender, request.asset, request.public_key, False, [])
        self.accounts[request.sender] = account
        entry = wire.ChainEntry(request_id, Kind.OPEN, 0, 0)
        slot = opening_slot(request.network, request.sender)
        return self._append(account, slot, Outcome.COMPLETED, request_id, decided_by, (entry,), ())

    def _execute(self, account: Account, request: Request, request_id: bytes, decided_by: bytes) -> wire.Recorded:
        outcome = self._judge(account, request)
        taken, account.incoming, account.incoming_count = account.incoming, 0, 0
        account.settled += taken
        postings: list[wire.ChainPosting] = []
        if request.kind is Kind.TRANSFER and outcome is Outcome.COMPLETED:
            account.settled -= request.total
            for number, posting in enumerate(request.postings):
                other = self.accounts[posting.recipient]
                other.incoming += posting.amount
                other.incoming_count += 1
                name = hashlib.sha256(request_id + bytes([number % 256])).digest()
                postings.append(
                    wire.ChainPosting(
                        name, number, posting.recipient, posting.amount, posting.memo, request_id, b"", bytes(32)
                    )
                )
        entry = wire.ChainEntry(request_id, request.kind, outcome, request.total)
        done = self._append(account, account.tip, outcome, request_id, decided_by, (entry,), tuple(postings), taken)
        if request.kind is Kind.CANCEL and outcome is Outcome.COMPLETED:
            self.recorded[request.target] = msgspec.structs.replace(
                done, request_id=request.target, outcome=Outcome.CANCELLED
            )
        return done

    def _judge(self, account: Account, request: Request) -> Outcome:
        if request.kind is Kind.CANCEL:
            return Outcome.ALREADY_DECIDED if request.target in self.recorded else Outcome.COMPLETED
        if any(p.recipient not in self.accounts for p in request.postings):
            return Outcome.UNKNOWN_RECIPIENT
        if any(self.accounts[p.recipient].asset != account.asset for p in request.postings):
            return Outcome.ASSET_MISMATCH
        if not account.issuer and request.total > account.settled + account.incoming:
            return Outcome.INSUFFICIENT_FUNDS
        return Outcome.COMPLETED

    def _append(
        self,
        account: Account,
        slot: bytes,
        outcome: Outcome,
        request_id: bytes,
        decided_by: bytes,
        entries: tuple[wire.ChainEntry, ...],
        postings: tuple[wire.ChainPosting, ...],
        taken: int = 0,
    ) -> wire.Recorded:
        height = account.height + 1 if account.links else 0
        link_hash = hashlib.sha256(slot + request_id).digest()
        income = (wire.ChainIncome(hashlib.sha256(link_hash).digest(), "mint", taken),) if taken else ()
        account.links.append(_link(link_hash, height, slot, account.settled, entries, postings, income))
        done = wire.Recorded(
            request_id,
            account.name,
            outcome,
            link_hash,
            height,
            account.settled,
            TIME_MS + height,
            decided_by,
            2,
            False,
        )
        self.recorded[request_id] = done
        return done

    def outcome(self, call: wire.AskOutcome) -> wire.Recorded | wire.NotFound:
        found = self.recorded.get(call.request_id)
        if found is None:
            return wire.NotFound(f"request {call.request_id.hex()[:16]}")
        return msgspec.structs.replace(found, repeated=True)

    def balance(self, call: wire.AskBalance) -> wire.Balance | wire.NotFound:
        account = self.accounts.get(call.account)
        if account is None:
            return wire.NotFound(f"account {call.account}")
        return wire.Balance(
            account.name,
            account.asset,
            self._scale(account.asset),
            account.issuer,
            account.settled,
            account.incoming,
            account.incoming_count,
            account.tip,
            account.height,
            1,
            TIME_MS + account.height,
            1,
            TIME_MS + 10_000,
            call.linearizable,
        )

    def chain(self, call: wire.AskChain) -> wire.Chain | wire.NotFound:
        account = self.accounts.get(call.account)
        if account is None:
            return wire.NotFound(f"account {call.account}")
        links = tuple(account.links[call.from_height : call.from_height + call.limit])
        return wire.Chain(account.name, account.asset, self._scale(account.asset), account.height, links)

    def list_accounts(self, call: wire.AskAccounts, most: int) -> wire.Accounts:
        names = sorted(n for n in self.accounts if n > call.after)
        limit = min(call.limit, most)
        page = [self.accounts[n] for n in names[:limit]]
        lines = tuple(
            wire.AccountLine(
                a.name,
                a.asset,
                self._scale(a.asset),
                a.issuer,
                a.public_key,
                a.height,
                a.tip,
                a.settled,
                a.incoming,
            )
            for a in page
        )
        return wire.Accounts(lines, len(names) > limit)

    def digest(self) -> wire.Digest:
        state = hashlib.sha256()
        for name in sorted(self.accounts):
            state.update(name.encode() + self.accounts[name].tip)
        totals = tuple(
            wire.AssetTotal(
                asset.code,
                sum(a.settled + a.incoming for a in self.accounts.values() if a.asset == asset.code),
            )
            for asset in self.genesis.assets
        )
        links = sum(len(a.links) for a in self.accounts.values())
        return wire.Digest(state.digest(), len(self.accounts), links, 1, totals)

    def _scale(self, code: str) -> int:
        asset = self.genesis.asset(code)
        assert asset is not None
        return asset.scale


def _link(
    link_hash: bytes,
    height: int,
    prev_hash: bytes,
    balance: int,
    entries: tuple[wire.ChainEntry, ...],
    postings: tuple[wire.ChainPosting, ...],
    income: tuple[wire.ChainIncome, ...] = (),
) -> wire.ChainLink:
    return wire.ChainLink(
        link_hash, height, prev_hash, balance, bytes(32), 1, TIME_MS + height, entries, postings, income
    )
