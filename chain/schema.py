"""The database: its tables, and the triggers that refuse what is wrong, however it is written (design section 2).

The writer stages a link's rows in the `new_*` tables, which are no money, and then inserts the link. The trigger
`links_apply` does the rest inside that one statement: it moves the staged rows into `transfers`, `outcomes` and
`accounts`, checks the sums and clears the staging. A statement happens completely or not at all, so there is no
moment, and needs no pragma, in which a link is there without its postings.

While `links_apply` runs, the one row of `applying` names its link; every other trigger asks for it and so refuses
all rows that are written by hand. The row can be written only for a link that is one above its account's head, and
`links_apply` ends by moving the head: outside of it there is no such link.

What a trigger cannot see is a hash: SQLite has no SHA-256. A forged link that agrees with itself in all else is
found by `chain.audit`.

Three habits, each because of a hole that SQLite leaves open:

* `links_insert` looks for the rows that `INSERT OR REPLACE` would silently delete (delete triggers do not run then).
* The checks are in triggers, not in CHECK clauses: `PRAGMA ignore_check_constraints` switches those off.
* The inner statements say `ON CONFLICT DO NOTHING` and their rows are counted (`changes()`): otherwise they inherit
  `OR REPLACE`, `OR IGNORE` or `OR FAIL` from the outer statement.
"""

import re
import sqlite3
from typing import Final

SCHEMA_VERSION: Final = 2

_TABLES: Final = """
CREATE TABLE meta (
  key      TEXT NOT NULL PRIMARY KEY,
  value    BLOB NOT NULL,
  checksum BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE views (
  epoch    INTEGER PRIMARY KEY,
  hash     BLOB NOT NULL,
  raw      BLOB NOT NULL,
  checksum BLOB NOT NULL
) STRICT;

CREATE TABLE active (
  epoch    INTEGER PRIMARY KEY,
  ranges   BLOB NOT NULL,
  checksum BLOB NOT NULL
) STRICT;

CREATE TABLE accounts (
  name       TEXT NOT NULL PRIMARY KEY,
  asset      TEXT NOT NULL,
  public_key BLOB NOT NULL,
  issuer     INTEGER NOT NULL,
  height     INTEGER NOT NULL,
  tip        BLOB NOT NULL,
  balance    INTEGER NOT NULL,
  epoch      INTEGER NOT NULL,
  time_ms    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE links (
  seq               INTEGER PRIMARY KEY,
  hash              BLOB NOT NULL UNIQUE,
  account           TEXT NOT NULL,
  height            INTEGER NOT NULL,
  prev_hash         BLOB NOT NULL UNIQUE,
  balance           INTEGER NOT NULL,
  incoming_checksum BLOB NOT NULL,
  epoch             INTEGER NOT NULL,
  time_ms           INTEGER NOT NULL,
  posting_count     INTEGER NOT NULL,
  confirmed_count   INTEGER NOT NULL,
  outcome_count     INTEGER NOT NULL,
  header            BLOB NOT NULL,
  body              BLOB NOT NULL,
  UNIQUE (account, height)
) STRICT;

CREATE TABLE transfers (
  hash                BLOB NOT NULL PRIMARY KEY,
  link_hash           BLOB NOT NULL,
  number              INTEGER NOT NULL,
  prev_hash           BLOB NOT NULL,
  sender              TEXT NOT NULL,
  recipient           TEXT NOT NULL,
  amount              INTEGER NOT NULL,
  memo                TEXT NOT NULL,
  balance             INTEGER NOT NULL,
  incoming_checksum   BLOB NOT NULL,
  height              INTEGER NOT NULL,
  time_ms             INTEGER NOT NULL,
  request_id          BLOB NOT NULL,
  confirmation        BLOB,
  prev_confirmed_hash BLOB
) STRICT;
CREATE INDEX transfers_incoming ON transfers (recipient, time_ms, sender, height, number, amount)
  WHERE confirmation IS NULL;
CREATE INDEX transfers_confirmation ON transfers (confirmation) WHERE confirmation IS NOT NULL;
CREATE INDEX transfers_stream ON transfers (sender, recipient, height, number);

CREATE TABLE outcomes (
  request_id BLOB NOT NULL,
  account    TEXT NOT NULL,
  link_hash  BLOB NOT NULL,
  number     INTEGER NOT NULL,
  outcome    INTEGER NOT NULL,
  PRIMARY KEY (request_id, account)
) STRICT, WITHOUT ROWID;

CREATE TABLE votes (
  slot           BLOB NOT NULL PRIMARY KEY,
  account        TEXT NOT NULL,
  height         INTEGER NOT NULL,
  promised_epoch INTEGER NOT NULL,
  promised_round INTEGER NOT NULL,
  promised_node  BLOB NOT NULL,
  accepted_epoch INTEGER,
  accepted_round INTEGER,
  accepted_node  BLOB,
  link           BLOB,
  checksum       BLOB NOT NULL
) STRICT;

CREATE TABLE cursors (
  peer     BLOB NOT NULL PRIMARY KEY,
  seq      INTEGER NOT NULL,
  checksum BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE seen (
  node     BLOB NOT NULL PRIMARY KEY,
  votes    INTEGER NOT NULL,
  checksum BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE applying (
  one       INTEGER PRIMARY KEY,
  link_hash BLOB NOT NULL
) STRICT;

CREATE TABLE new_postings (
  link_hash  BLOB NOT NULL,
  number     INTEGER NOT NULL,
  hash       BLOB NOT NULL,
  recipient  TEXT NOT NULL,
  amount     INTEGER NOT NULL,
  memo       TEXT NOT NULL,
  request_id BLOB NOT NULL,
  PRIMARY KEY (link_hash, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE new_confirmations (
  link_hash BLOB NOT NULL,
  number    INTEGER NOT NULL,
  hash      BLOB NOT NULL,
  PRIMARY KEY (link_hash, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE new_outcomes (
  link_hash  BLOB NOT NULL,
  number     INTEGER NOT NULL,
  request_id BLOB NOT NULL,
  outcome    INTEGER NOT NULL,
  PRIMARY KEY (link_hash, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE new_accounts (
  link_hash  BLOB NOT NULL PRIMARY KEY,
  asset      TEXT NOT NULL,
  public_key BLOB NOT NULL,
  issuer     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

_LINK_TRIGGERS: Final = """
CREATE TRIGGER links_insert BEFORE INSERT ON links BEGIN
  SELECT RAISE(ABORT, 'links: a link with this seq, hash, prev_hash or height is already there')
  WHERE EXISTS (SELECT 1 FROM links WHERE seq = NEW.seq)
     OR EXISTS (SELECT 1 FROM links WHERE hash = NEW.hash)
     OR EXISTS (SELECT 1 FROM links WHERE prev_hash = NEW.prev_hash)
     OR EXISTS (SELECT 1 FROM links WHERE account = NEW.account AND height = NEW.height);
END;

CREATE TRIGGER links_apply AFTER INSERT ON links BEGIN
  INSERT INTO applying VALUES (1, NEW.hash);

  SELECT RAISE(ABORT, 'links: seq is not one above the last link of the log')
  WHERE NEW.seq <> 1 AND NOT EXISTS (SELECT 1 FROM links WHERE seq = NEW.seq - 1);
  SELECT RAISE(ABORT, 'links: the columns are not what the header says')
  WHERE length(NEW.hash) <> 32 OR length(NEW.header) <> 224
     OR hex(substr(NEW.header, 33, 160)) <>
        substr(hex(NEW.account) || hex(zeroblob(64)), 1, 128) || printf('%016X', NEW.height) || hex(NEW.prev_hash)
        || printf('%016X', NEW.balance) || hex(NEW.incoming_checksum) || printf('%016X%016X', NEW.epoch, NEW.time_ms);
  SELECT RAISE(ABORT, 'links: confirmed_count is not what the body says')
  WHERE NEW.confirmed_count < 0
     OR hex(substr(NEW.body, length(NEW.body) - 32 * NEW.confirmed_count - 3, 4)) <> printf('%08X', NEW.confirmed_count);
  SELECT RAISE(ABORT, 'links: prev_hash is not the tip of the account, or its time is not later')
  WHERE NEW.height > 0
    AND NOT EXISTS (SELECT 1 FROM accounts WHERE name = NEW.account AND tip = NEW.prev_hash AND time_ms < NEW.time_ms);
  SELECT RAISE(ABORT, 'links: an opening moves no money')
  WHERE NEW.height = 0 AND (NEW.balance <> 0 OR NEW.posting_count <> 0 OR NEW.confirmed_count <> 0);

  SELECT RAISE(ABORT, 'links: a posting has a wrong number, hash or amount')
  FROM new_postings WHERE link_hash = NEW.hash
    AND (number < 0 OR number >= NEW.posting_count OR length(hash) <> 32 OR length(request_id) <> 32 OR amount <= 0);
  SELECT RAISE(ABORT, 'links: a recipient is not another account of the same asset')
  FROM new_postings AS p LEFT JOIN accounts AS a ON a.name = p.recipient
  WHERE p.link_hash = NEW.hash AND (p.recipient = NEW.account
    OR a.asset IS NOT (SELECT asset FROM accounts WHERE name = NEW.account));
  INSERT INTO transfers
  SELECT hash, NEW.hash, number, NEW.prev_hash, NEW.account, recipient, amount, memo, NEW.balance,
         NEW.incoming_checksum, NEW.height, NEW.time_ms, request_id, NULL, NULL
  FROM new_postings WHERE link_hash = NEW.hash ORDER BY number
  ON CONFLICT DO NOTHING;
  SELECT RAISE(ABORT, 'links: posting_count is not the number of its new postings') WHERE changes() <> NEW.posting_count;

  SELECT RAISE(ABORT, 'links: a confirmation is not the one that the body lists in its place')
  FROM new_confirmations WHERE link_hash = NEW.hash
    AND substr(NEW.body, length(NEW.body) - 32 * (NEW.confirmed_count - number) + 1, 32) <> hash;
  UPDATE transfers SET
    confirmation = NEW.hash,
    prev_confirmed_hash = coalesce(
      (SELECT before.hash FROM transfers AS before
       WHERE before.sender = transfers.sender AND before.recipient = transfers.recipient
         AND (before.height, before.number) < (transfers.height, transfers.number)
       ORDER BY before.height DESC, before.number DESC LIMIT 1),
      zeroblob(32))
  WHERE hash IN (SELECT hash FROM new_confirmations WHERE link_hash = NEW.hash)
    AND recipient = NEW.account AND confirmation IS NULL;
  SELECT RAISE(ABORT, 'links: confirmed_count is not the number of unconfirmed postings to the account that it confirms')
  WHERE changes() <> NEW.confirmed_count;
  SELECT RAISE(ABORT, 'links: a posting that it confirms is not the next one of its sender')
  FROM new_confirmations AS c
  CROSS JOIN transfers AS t ON t.hash = c.hash
  CROSS JOIN transfers AS before ON before.hash = t.prev_confirmed_hash
  WHERE c.link_hash = NEW.hash AND before.confirmation IS NULL;

  SELECT RAISE(ABORT, 'links: balance is not the balance before + what it confirms - what it pays')
  FROM (SELECT a.balance + (SELECT coalesce(sum(t.amount), 0) FROM new_confirmations AS c
                            CROSS JOIN transfers AS t ON t.hash = c.hash WHERE c.link_hash = NEW.hash) AS funds,
               (SELECT coalesce(sum(amount), 0) FROM new_postings WHERE link_hash = NEW.hash) AS debit
        FROM accounts AS a WHERE a.name = NEW.account)
  WHERE typeof(funds) <> 'integer' OR typeof(funds - debit) <> 'integer' OR NEW.balance <> funds - debit;
  SELECT RAISE(ABORT, 'links: balance is below zero and the account is no issuer')
  WHERE NEW.balance < 0 AND NOT EXISTS (SELECT 1 FROM accounts WHERE name = NEW.account AND issuer = 1);

  INSERT INTO outcomes
  SELECT request_id, NEW.account, NEW.hash, number, outcome
  FROM new_outcomes WHERE link_hash = NEW.hash AND length(request_id) = 32 AND number >= 0 AND number < NEW.outcome_count
  ORDER BY number
  ON CONFLICT DO NOTHING;
  SELECT RAISE(ABORT, 'links: outcome_count is not the number of requests that had no outcome before')
  WHERE changes() <> NEW.outcome_count;

  INSERT INTO accounts
  SELECT NEW.account, asset, public_key, issuer, 0, NEW.hash, 0, NEW.epoch, NEW.time_ms
  FROM new_accounts WHERE link_hash = NEW.hash AND NEW.height = 0;
  SELECT RAISE(ABORT, 'links: a link at height 0 opens an account') WHERE changes() <> (NEW.height = 0);
  UPDATE accounts SET height = NEW.height, tip = NEW.hash, balance = NEW.balance, epoch = NEW.epoch, time_ms = NEW.time_ms
  WHERE name = NEW.account AND NEW.height > 0;

  DELETE FROM new_postings WHERE link_hash = NEW.hash;
  DELETE FROM new_confirmations WHERE link_hash = NEW.hash;
  DELETE FROM new_outcomes WHERE link_hash = NEW.hash;
  DELETE FROM new_accounts WHERE link_hash = NEW.hash;
  DELETE FROM applying;
END;

CREATE TRIGGER links_update BEFORE UPDATE ON links BEGIN
  SELECT RAISE(ABORT, 'links: a decided link is never changed');
END;

CREATE TRIGGER links_delete BEFORE DELETE ON links BEGIN
  SELECT RAISE(ABORT, 'links: a decided link is never deleted');
END;
"""

_TRANSFER_TRIGGERS: Final = """
CREATE TRIGGER applying_insert BEFORE INSERT ON applying BEGIN
  SELECT RAISE(ABORT, 'applying: only a link that is one above the head of its account is applied, by its own trigger')
  WHERE EXISTS (SELECT 1 FROM applying) OR NOT EXISTS (
    SELECT 1 FROM links AS l LEFT JOIN accounts AS a ON a.name = l.account
    WHERE l.hash = NEW.link_hash AND l.height = coalesce(a.height, -1) + 1);
END;

CREATE TRIGGER applying_update BEFORE UPDATE ON applying BEGIN
  SELECT RAISE(ABORT, 'applying: one link at a time, and to its end');
END;

CREATE TRIGGER transfers_insert BEFORE INSERT ON transfers BEGIN
  SELECT RAISE(ABORT, 'transfers: a posting is written only by the link that makes it')
  WHERE NOT EXISTS (SELECT 1 FROM applying WHERE link_hash = NEW.link_hash);
END;

CREATE TRIGGER transfers_update BEFORE UPDATE ON transfers BEGIN
  SELECT RAISE(ABORT, 'transfers: a posting never changes, but that it is confirmed once, by the link that lists it')
  WHERE NOT EXISTS (SELECT 1 FROM applying WHERE link_hash = NEW.confirmation);
END;

CREATE TRIGGER transfers_delete BEFORE DELETE ON transfers BEGIN
  SELECT RAISE(ABORT, 'transfers: a posting is never deleted');
END;
"""

_OTHER_TRIGGERS: Final = """
CREATE TRIGGER outcomes_insert BEFORE INSERT ON outcomes BEGIN
  SELECT RAISE(ABORT, 'outcomes: an outcome is written only by the link that records it')
  WHERE NOT EXISTS (SELECT 1 FROM applying WHERE link_hash = NEW.link_hash);
END;

CREATE TRIGGER outcomes_update BEFORE UPDATE ON outcomes BEGIN
  SELECT RAISE(ABORT, 'outcomes: an outcome is final');
END;

CREATE TRIGGER outcomes_delete BEFORE DELETE ON outcomes BEGIN
  SELECT RAISE(ABORT, 'outcomes: an outcome is never deleted');
END;

CREATE TRIGGER accounts_insert BEFORE INSERT ON accounts BEGIN
  SELECT RAISE(ABORT, 'accounts: an account is written only by the link that opens it')
  WHERE NOT EXISTS (SELECT 1 FROM applying WHERE link_hash = NEW.tip) OR length(NEW.public_key) <> 32;
  SELECT RAISE(ABORT, 'accounts: issuers come from the genesis file, before all other accounts')
  WHERE NEW.issuer NOT IN (0, 1) OR (NEW.issuer = 1 AND EXISTS (SELECT 1 FROM accounts WHERE issuer = 0 OR height > 0));
END;

CREATE TRIGGER accounts_update BEFORE UPDATE ON accounts BEGIN
  SELECT RAISE(ABORT, 'accounts: nothing changes but the head, and that only by the next link of the account')
  WHERE NOT EXISTS (SELECT 1 FROM applying WHERE link_hash = NEW.tip);
END;

CREATE TRIGGER accounts_delete BEFORE DELETE ON accounts BEGIN
  SELECT RAISE(ABORT, 'accounts: an account is never deleted');
END;

CREATE TRIGGER views_insert BEFORE INSERT ON views BEGIN
  SELECT RAISE(ABORT, 'views: views are numbered one after the other')
  WHERE EXISTS (SELECT 1 FROM views WHERE epoch >= NEW.epoch)
     OR (EXISTS (SELECT 1 FROM views) AND NOT EXISTS (SELECT 1 FROM views WHERE epoch = NEW.epoch - 1));
END;

CREATE TRIGGER views_update BEFORE UPDATE ON views BEGIN
  SELECT RAISE(ABORT, 'views: a view is never changed');
END;

CREATE TRIGGER views_delete BEFORE DELETE ON views BEGIN
  SELECT RAISE(ABORT, 'views: a view is never deleted');
END;

CREATE TRIGGER meta_insert BEFORE INSERT ON meta BEGIN
  SELECT RAISE(ABORT, 'meta: this key is already there') WHERE EXISTS (SELECT 1 FROM meta WHERE key = NEW.key);
END;

CREATE TRIGGER meta_update BEFORE UPDATE ON meta BEGIN
  SELECT RAISE(ABORT, 'meta: only the head of the log ever changes') WHERE OLD.key <> 'log' OR NEW.key <> 'log';
END;

CREATE TRIGGER meta_delete BEFORE DELETE ON meta BEGIN
  SELECT RAISE(ABORT, 'meta: nothing is ever deleted');
END;
"""

SCHEMA_SQL: Final = _TABLES + _LINK_TRIGGERS + _TRANSFER_TRIGGERS + _OTHER_TRIGGERS
STAGING_TABLES: Final = ("applying", "new_postings", "new_confirmations", "new_outcomes", "new_accounts")


def statements() -> list[str]:
    """The statements that make the schema, in order, as SQLite keeps them in `sqlite_master`."""
    return [s.strip().removesuffix(";") for s in re.split(r"(?=^CREATE )", SCHEMA_SQL, flags=re.MULTILINE) if s.strip()]


def create_schema(conn: sqlite3.Connection) -> None:
    """Make all tables, indexes and triggers in the caller's transaction; the database must be empty."""
    for statement in statements():
        conn.execute(statement)


def schema_faults(conn: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """(name, what was expected, what is there) of everything in the schema that is missing, changed or added."""
    expected = {statement.split()[2]: statement for statement in statements()}
    found = {
        str(name): str(sql)
        for name, sql in conn.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
    }
    return [
        (name, expected.get(name, "nothing of this name"), found.get(name, "nothing of this name"))
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
