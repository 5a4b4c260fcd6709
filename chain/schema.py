"""The database: its tables, and the triggers that refuse what is wrong, however it is written (design section 2).

The writer stages a link's rows in the `new_*` tables, which are no money, and then inserts the link. The trigger
`links_apply` does the rest inside that one statement: it checks the staged rows and their sums and takes them out of
the staging, and the delete triggers of the `new_*` tables carry each one out: into `postings`, `incoming`, `outcomes`,
`accounts`. A statement happens completely or not at all, so there is no moment, and needs no pragma, in which a link is
there without its postings.

Money is written where the disk is written anyway (ADR 21): `postings` and `confirmations` only grow at their ends, by
the order of the log, and are never changed. What is looked for by account is small and apart: `incoming`, the postings
to an account that it has not taken up, and `threads`, the last posting from a sender that it has. Their rows are
integers only (ADR 24): an account stands in them as its number, `accounts.id`, which is the `seq` of the link that
opened it. The view `transfers` puts the rows together as design section 2 has them, `waiting` shows `incoming` under
names.

While `links_apply` runs, the one row of `applying` names its link; every other trigger asks for it and so refuses
all rows that are written by hand (and a staged row deleted by hand is just gone). The row can be written only for a
link that is one above its account's head, and `links_apply` ends by moving the head: outside of it there is no such
link.

What a trigger cannot see is a hash: SQLite has no SHA-256. A forged link that agrees with itself in all else is
found by `chain.audit`.

The `id` of a staged row, a posting and a confirmation is `seq << 14 | number`: the link's place in the log, and the
row's number in the link (there are at most 16,380 of a kind). So the postings of one sender are in the order of its
chain. A request of many postings is one row of `new_batches`: the records as the body has them, the hashes of the
postings one after the other, and the amounts as a JSON array, because SQL reads no integers from bytes.

Three habits, each because of a hole that SQLite leaves open:

* `links_insert` looks for the rows that `INSERT OR REPLACE` would silently delete (delete triggers do not run then).
* The checks are in triggers, not in CHECK clauses: `PRAGMA ignore_check_constraints` switches those off.
* The inner statements say `ON CONFLICT DO NOTHING` and their rows are counted (`changes()`): otherwise they inherit
  `OR REPLACE`, `OR IGNORE` or `OR FAIL` from the outer statement.

And one because of its cost: within a trigger, `INSERT .. SELECT`, `UPDATE .. WHERE x IN (SELECT ..)` and joins with
subqueries each make a temporary table, which costs more than all the rows of a link of one posting. So rows are carried
out one by one, by triggers of `new_*` that insert VALUES; only batches use `INSERT .. SELECT`.

A vote is no money, but without it a slot can be decided twice, and no checksum tells that a row is gone. So a vote is
deleted only when the link of its slot is here (for a vote on a view: when that view is), and until then its ballots
only rise. `votes_insert` looks for the row that `INSERT OR REPLACE` would silently delete.

A posting is found by its hash through the first six bytes of it (`BY_HASH`): an index of whole hashes would be the
largest thing that a posting writes. The index is in parts of some 32,768 postings: hashes are random, so in one index
of all each posting makes a page of its own dirty, in a small part they share them. A search looks into each part, the
newest first; `parts` steps from one to the next in the index itself, so it takes as many steps as there are, whatever
the rows say.

Nobody looks whether a posting with this hash is there: a posting's hash is over its link's hash, which is UNIQUE, and
its number, so only a hash that is made up can be there twice, and a hash that is made up no trigger can see.
"""

import re
import sqlite3
from typing import Final

SCHEMA_VERSION: Final = 6
ID_BITS: Final = 14  # of a row's id: its number in the link; the bits above are the link's seq
PART_BITS: Final = 15  # of the number of postings before a link; the bits above are the part of the index by hash
BY_HASH: Final = (  # posting `p` with the hash {0}, by its index: in whichever part it is, the newest first
    "p.id = (SELECT h.id FROM parts CROSS JOIN postings AS h ON h.part = parts.part "
    "AND substr(h.hash, 1, 6) = substr({0}, 1, 6) AND h.hash = {0} LIMIT 1)"
)

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
  id         INTEGER NOT NULL,
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
  postings_before   INTEGER NOT NULL,
  header            BLOB NOT NULL,
  body              BLOB NOT NULL,
  UNIQUE (account, height)
) STRICT;

CREATE TABLE postings (
  id         INTEGER PRIMARY KEY,
  part       INTEGER NOT NULL,
  hash       BLOB NOT NULL,
  recipient  TEXT NOT NULL,
  amount     INTEGER NOT NULL,
  memo       TEXT NOT NULL,
  request_id BLOB NOT NULL
) STRICT;
CREATE INDEX postings_hash ON postings (part, substr(hash, 1, 6));

CREATE VIEW parts AS
WITH RECURSIVE r(part) AS (
  SELECT max(part) FROM postings
  UNION ALL SELECT (SELECT max(p.part) FROM postings AS p WHERE p.part < r.part) FROM r WHERE r.part IS NOT NULL
), m(part) AS MATERIALIZED (SELECT part FROM r WHERE part IS NOT NULL)
SELECT part FROM m;

CREATE TABLE confirmations (
  id       INTEGER PRIMARY KEY,
  posting  INTEGER NOT NULL UNIQUE,
  previous INTEGER
) STRICT;

CREATE TABLE incoming (
  recipient INTEGER NOT NULL,
  sender    INTEGER NOT NULL,
  posting   INTEGER NOT NULL,
  amount    INTEGER NOT NULL,
  PRIMARY KEY (recipient, sender, posting)
) STRICT, WITHOUT ROWID;

CREATE TABLE threads (
  recipient INTEGER NOT NULL,
  sender    INTEGER NOT NULL,
  last      INTEGER NOT NULL,
  PRIMARY KEY (recipient, sender)
) STRICT, WITHOUT ROWID;

CREATE VIEW transfers AS
SELECT p.id AS id, p.hash AS hash, l.hash AS link_hash, p.id & 16383 AS number, l.prev_hash AS prev_hash, l.account AS sender,
       p.recipient AS recipient, p.amount AS amount, p.memo AS memo, l.balance AS balance,
       l.incoming_checksum AS incoming_checksum, l.height AS height, l.time_ms AS time_ms, p.request_id AS request_id,
       t.hash AS confirmation, iif(c.id IS NULL, NULL, coalesce(b.hash, zeroblob(32))) AS prev_confirmed_hash
FROM links AS l JOIN postings AS p ON l.seq = p.id >> 14 AND p.id BETWEEN l.seq << 14 AND l.seq << 14 | 16383
LEFT JOIN confirmations AS c ON c.posting = p.id LEFT JOIN links AS t ON t.seq = c.id >> 14
LEFT JOIN postings AS b ON b.id = c.previous;

CREATE VIEW waiting AS
SELECT a.name AS recipient, s.account AS sender, i.posting AS posting, i.amount AS amount, p.hash AS hash
FROM accounts AS a CROSS JOIN incoming AS i ON i.recipient = a.id LEFT JOIN links AS s ON s.seq = i.sender
LEFT JOIN postings AS p ON p.id = i.posting;

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
  one        INTEGER PRIMARY KEY,
  link_hash  BLOB NOT NULL,
  seq        INTEGER NOT NULL,
  account    TEXT NOT NULL,
  account_id INTEGER NOT NULL,
  part       INTEGER NOT NULL
) STRICT;

CREATE TABLE new_postings (
  id         INTEGER PRIMARY KEY,
  hash       BLOB NOT NULL,
  recipient  TEXT NOT NULL,
  amount     INTEGER NOT NULL,
  memo       TEXT NOT NULL,
  request_id BLOB NOT NULL
) STRICT;

CREATE TABLE new_batches (
  id         INTEGER PRIMARY KEY,
  at         INTEGER NOT NULL,
  count      INTEGER NOT NULL,
  total      INTEGER NOT NULL,
  request_id BLOB NOT NULL,
  amounts    TEXT NOT NULL,
  hashes     BLOB NOT NULL,
  records    BLOB NOT NULL
) STRICT;

CREATE TABLE new_confirmations (
  id      INTEGER PRIMARY KEY,
  hash    BLOB NOT NULL,
  posting INTEGER NOT NULL,
  sender  INTEGER NOT NULL,
  amount  INTEGER NOT NULL
) STRICT;

CREATE TABLE new_outcomes (
  id         INTEGER PRIMARY KEY,
  request_id BLOB NOT NULL,
  outcome    INTEGER NOT NULL
) STRICT;

CREATE TABLE new_accounts (
  seq        INTEGER PRIMARY KEY,
  asset      TEXT NOT NULL,
  public_key BLOB NOT NULL,
  issuer     INTEGER NOT NULL
) STRICT;
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
  INSERT INTO applying
  VALUES (1, NEW.hash, NEW.seq, NEW.account, coalesce((SELECT id FROM accounts WHERE name = NEW.account), NEW.seq),
    NEW.postings_before >> 15);

  SELECT RAISE(ABORT, 'links: seq is not one above the last link of the log')
  WHERE NEW.seq <> 1 AND NOT EXISTS (SELECT 1 FROM links WHERE seq = NEW.seq - 1);
  SELECT RAISE(ABORT, 'links: postings_before is not the number of postings of the links before it')
  WHERE NEW.postings_before <> coalesce((SELECT postings_before + posting_count FROM links WHERE seq = NEW.seq - 1), 0);
  SELECT RAISE(ABORT, 'links: the columns are not what the header says')
  WHERE length(NEW.hash) <> 32 OR length(NEW.header) <> 224
     OR hex(substr(NEW.header, 33, 160)) <>
        substr(hex(NEW.account) || hex(zeroblob(64)), 1, 128) || printf('%016X', NEW.height) || hex(NEW.prev_hash)
        || printf('%016X', NEW.balance) || hex(NEW.incoming_checksum) || printf('%016X%016X', NEW.epoch, NEW.time_ms);
  SELECT RAISE(ABORT, 'links: confirmed_count is not what the body says')
  WHERE hex(substr(NEW.body, length(NEW.body) - 32 * NEW.confirmed_count - 3, 4)) <> printf('%08X', NEW.confirmed_count);
  SELECT RAISE(ABORT, 'links: prev_hash is not the tip of the account, or its time is not later')
  WHERE NEW.height > 0
    AND NOT EXISTS (SELECT 1 FROM accounts WHERE name = NEW.account AND tip = NEW.prev_hash AND time_ms < NEW.time_ms);
  SELECT RAISE(ABORT, 'links: an opening moves no money')
  WHERE NEW.height = 0 AND (NEW.balance <> 0 OR NEW.posting_count <> 0 OR NEW.confirmed_count <> 0);

  SELECT RAISE(ABORT, 'links: a confirmation is not the one that the body lists in its place')
  FROM new_confirmations WHERE id BETWEEN NEW.seq << 14 AND NEW.seq << 14 | 16383
    AND substr(NEW.body, length(NEW.body) - 32 * (NEW.confirmed_count - (id & 16383)) + 1, 32) <> hash;

  SELECT RAISE(ABORT, 'links: a batch is not what the body lists, or has the numbers of other postings')
  FROM new_batches AS b WHERE id BETWEEN NEW.seq << 14 AND NEW.seq << 14 | 16383
    AND ((id & 16383) + count > NEW.posting_count OR count < 1 OR length(request_id) <> 32
      OR length(hashes) <> 32 * count OR json_array_length(amounts) <> count
      OR substr(NEW.body, at + 1, 128 * count) <> records
      OR EXISTS (SELECT 1 FROM new_postings AS p WHERE p.id BETWEEN b.id AND b.id + b.count - 1)
      OR EXISTS (SELECT 1 FROM new_batches AS o WHERE o.id > b.id AND o.id < b.id + b.count));
  SELECT CASE
    WHEN wrong THEN RAISE(ABORT, 'links: a posting has a wrong number, hash, request or amount')
    WHEN count <> NEW.posting_count THEN RAISE(ABORT, 'links: posting_count is not the number of its new postings')
    WHEN typeof(balance + income - debit) <> 'integer' OR NEW.balance <> balance + income - debit
      THEN RAISE(ABORT, 'links: balance is not the balance before + what it confirms - what it pays')
    WHEN NEW.balance < 0 AND NOT EXISTS (SELECT 1 FROM accounts WHERE name = NEW.account AND issuer = 1)
      THEN RAISE(ABORT, 'links: balance is below zero and the account is no issuer')
    END
  FROM (
    SELECT
      count(*) + (SELECT coalesce(sum(count), 0) FROM new_batches WHERE id BETWEEN NEW.seq << 14 AND NEW.seq << 14 | 16383) AS count,
      coalesce(sum(amount), 0) + (SELECT coalesce(sum(total), 0) FROM new_batches WHERE id BETWEEN NEW.seq << 14 AND NEW.seq << 14 | 16383) AS debit,
      max((id & 16383) >= NEW.posting_count OR length(hash) <> 32 OR length(request_id) <> 32 OR amount <= 0) AS wrong,
      coalesce((SELECT balance FROM accounts WHERE name = NEW.account), 0) AS balance,
      (SELECT coalesce(sum(amount), 0) FROM new_confirmations WHERE id BETWEEN NEW.seq << 14 AND NEW.seq << 14 | 16383) AS income
    FROM new_postings WHERE id BETWEEN NEW.seq << 14 AND NEW.seq << 14 | 16383);
  DELETE FROM new_confirmations WHERE id BETWEEN NEW.seq << 14 AND NEW.seq << 14 | 16383;
  SELECT RAISE(ABORT, 'links: confirmed_count is not the number of unconfirmed postings to the account that it confirms')
  WHERE changes() <> NEW.confirmed_count;
  DELETE FROM new_postings WHERE id BETWEEN NEW.seq << 14 AND NEW.seq << 14 | 16383;
  DELETE FROM new_batches WHERE id BETWEEN NEW.seq << 14 AND NEW.seq << 14 | 16383;

  DELETE FROM new_outcomes WHERE id BETWEEN NEW.seq << 14 AND (NEW.seq << 14) + NEW.outcome_count - 1
    AND length(request_id) = 32;
  SELECT RAISE(ABORT, 'links: outcome_count is not the number of requests that had no outcome before')
  WHERE changes() <> NEW.outcome_count;

  DELETE FROM new_accounts WHERE seq = NEW.seq;
  SELECT RAISE(ABORT, 'links: a link at height 0 opens an account') WHERE changes() <> (NEW.height = 0);
  UPDATE accounts SET height = NEW.height, tip = NEW.hash, balance = NEW.balance, epoch = NEW.epoch, time_ms = NEW.time_ms
  WHERE name = NEW.account AND NEW.height > 0;

  DELETE FROM applying;
END;

CREATE TRIGGER links_update BEFORE UPDATE ON links BEGIN
  SELECT RAISE(ABORT, 'links: a decided link is never changed');
END;

CREATE TRIGGER links_delete BEFORE DELETE ON links BEGIN
  SELECT RAISE(ABORT, 'links: a decided link is never deleted');
END;
"""

_STAGING_TRIGGERS: Final = """
CREATE TRIGGER new_postings_delete AFTER DELETE ON new_postings
WHEN OLD.id >> 14 = (SELECT seq FROM applying) BEGIN
  SELECT RAISE(ABORT, 'links: a recipient is not another account of the same asset')
  WHERE OLD.recipient = (SELECT account FROM applying) OR (SELECT asset FROM accounts WHERE name = OLD.recipient)
    IS NOT (SELECT asset FROM accounts WHERE name = (SELECT account FROM applying));
  INSERT INTO postings VALUES (
    OLD.id, (SELECT part FROM applying), OLD.hash, OLD.recipient, OLD.amount, OLD.memo, OLD.request_id)
  ON CONFLICT DO NOTHING;
  SELECT RAISE(ABORT, 'links: posting_count is not the number of its new postings') WHERE changes() <> 1;
  INSERT INTO incoming VALUES (
    (SELECT id FROM accounts WHERE name = OLD.recipient), (SELECT account_id FROM applying), OLD.id, OLD.amount)
  ON CONFLICT DO NOTHING;
  SELECT RAISE(ABORT, 'links: posting_count is not the number of its new postings') WHERE changes() <> 1;
END;

CREATE TRIGGER new_batches_delete AFTER DELETE ON new_batches
WHEN OLD.id >> 14 = (SELECT seq FROM applying) BEGIN
  SELECT RAISE(ABORT, 'links: a batch holds an amount that is none, or another total')
  FROM (SELECT count(*) FILTER (WHERE type = 'integer' AND value > 0) AS good, sum(value) AS total FROM json_each(OLD.amounts))
  WHERE good <> OLD.count OR total <> OLD.total;
  INSERT INTO postings
  SELECT OLD.id + j.key, l.part, substr(OLD.hashes, 32 * j.key + 1, 32), a.name, j.value,
         printf('%s', CAST(substr(OLD.records, 128 * j.key + 73, 56) AS TEXT)), OLD.request_id
  FROM applying AS l CROSS JOIN accounts AS s ON s.name = l.account CROSS JOIN json_each(OLD.amounts) AS j
  CROSS JOIN accounts AS a ON a.name = printf('%s', CAST(substr(OLD.records, 128 * j.key + 1, 64) AS TEXT))
    AND a.asset = s.asset AND a.name <> s.name
  ON CONFLICT DO NOTHING;
  SELECT RAISE(ABORT, 'links: a batch has a recipient that is not another account of the same asset, or a posting that is there')
  WHERE changes() <> OLD.count;
  INSERT INTO incoming
  SELECT a.id, l.account_id, p.id, p.amount
  FROM applying AS l CROSS JOIN postings AS p ON p.id BETWEEN OLD.id AND OLD.id + OLD.count - 1
  CROSS JOIN accounts AS a ON a.name = p.recipient
  ORDER BY a.id
  ON CONFLICT DO NOTHING;
  SELECT RAISE(ABORT, 'links: posting_count is not the number of its new postings') WHERE changes() <> OLD.count;
END;

CREATE TRIGGER new_confirmations_delete AFTER DELETE ON new_confirmations
WHEN OLD.id >> 14 = (SELECT seq FROM applying) BEGIN
  DELETE FROM incoming
  WHERE recipient = (SELECT account_id FROM applying) AND sender = OLD.sender AND posting = OLD.posting AND amount = OLD.amount
    AND (SELECT hash FROM postings WHERE id = OLD.posting) = OLD.hash;
  SELECT RAISE(ABORT, 'links: confirmed_count is not the number of unconfirmed postings to the account that it confirms')
  WHERE changes() <> 1;
  SELECT RAISE(ABORT, 'links: a posting that it confirms is not the next one of its sender')
  WHERE EXISTS (
    SELECT 1 FROM incoming
    WHERE recipient = (SELECT account_id FROM applying) AND sender = OLD.sender AND posting < OLD.posting);
  INSERT INTO confirmations VALUES (OLD.id, OLD.posting,
    (SELECT last FROM threads WHERE recipient = (SELECT account_id FROM applying) AND sender = OLD.sender))
  ON CONFLICT DO NOTHING;
  SELECT RAISE(ABORT, 'links: confirmed_count is not the number of unconfirmed postings to the account that it confirms')
  WHERE changes() <> 1;
  INSERT INTO threads VALUES ((SELECT account_id FROM applying), OLD.sender, OLD.posting)
  ON CONFLICT (recipient, sender) DO UPDATE SET last = excluded.last WHERE last < excluded.last;
  SELECT RAISE(ABORT, 'links: a posting that it confirms is not the next one of its sender') WHERE changes() <> 1;
END;

CREATE TRIGGER new_outcomes_delete AFTER DELETE ON new_outcomes
WHEN OLD.id >> 14 = (SELECT seq FROM applying) BEGIN
  INSERT INTO outcomes VALUES (
    OLD.request_id, (SELECT account FROM applying), (SELECT link_hash FROM applying), OLD.id & 16383, OLD.outcome)
  ON CONFLICT DO NOTHING;
  SELECT RAISE(ABORT, 'links: outcome_count is not the number of requests that had no outcome before')
  WHERE changes() <> 1;
END;

CREATE TRIGGER new_accounts_delete AFTER DELETE ON new_accounts WHEN OLD.seq = (SELECT seq FROM applying) BEGIN
  INSERT INTO accounts
  SELECT account, seq, OLD.asset, OLD.public_key, OLD.issuer, 0, hash, 0, epoch, time_ms FROM links WHERE seq = OLD.seq
  ON CONFLICT DO NOTHING;
  SELECT RAISE(ABORT, 'links: a link at height 0 opens an account') WHERE changes() <> 1;
END;
"""

_MONEY_TRIGGERS: Final = """
CREATE TRIGGER applying_insert BEFORE INSERT ON applying BEGIN
  SELECT RAISE(ABORT, 'applying: only a link that is one above the head of its account is applied, by its own trigger')
  WHERE EXISTS (SELECT 1 FROM applying) OR NOT EXISTS (
    SELECT 1 FROM links AS l LEFT JOIN accounts AS a ON a.name = l.account
    WHERE l.seq = NEW.seq AND l.hash = NEW.link_hash AND l.account = NEW.account AND NEW.account_id = coalesce(a.id, l.seq)
      AND NEW.part = l.postings_before >> 15 AND l.height = coalesce(a.height, -1) + 1);
END;

CREATE TRIGGER applying_update BEFORE UPDATE ON applying BEGIN
  SELECT RAISE(ABORT, 'applying: one link at a time, and to its end');
END;

CREATE TRIGGER postings_insert BEFORE INSERT ON postings BEGIN
  SELECT RAISE(ABORT, 'postings: a posting is written only by the link that makes it')
  WHERE NOT EXISTS (SELECT 1 FROM applying WHERE seq = NEW.id >> 14 AND part = NEW.part);
END;

CREATE TRIGGER postings_update BEFORE UPDATE ON postings BEGIN
  SELECT RAISE(ABORT, 'postings: a posting never changes');
END;

CREATE TRIGGER postings_delete BEFORE DELETE ON postings BEGIN
  SELECT RAISE(ABORT, 'postings: a posting is never deleted');
END;

CREATE TRIGGER confirmations_insert BEFORE INSERT ON confirmations WHEN NEW.id >> 14 IS NOT (SELECT seq FROM applying) BEGIN
  SELECT RAISE(ABORT, 'confirmations: a posting is confirmed only by the link that lists it');
END;

CREATE TRIGGER confirmations_update BEFORE UPDATE ON confirmations BEGIN
  SELECT RAISE(ABORT, 'confirmations: a confirmation never changes');
END;

CREATE TRIGGER confirmations_delete BEFORE DELETE ON confirmations BEGIN
  SELECT RAISE(ABORT, 'confirmations: a confirmation is never taken back');
END;

CREATE TRIGGER incoming_insert BEFORE INSERT ON incoming WHEN NEW.posting >> 14 IS NOT (SELECT seq FROM applying) BEGIN
  SELECT RAISE(ABORT, 'incoming: money comes in only by the link that pays it');
END;

CREATE TRIGGER incoming_update BEFORE UPDATE ON incoming BEGIN
  SELECT RAISE(ABORT, 'incoming: incoming money never changes');
END;

CREATE TRIGGER incoming_delete BEFORE DELETE ON incoming WHEN OLD.recipient IS NOT (SELECT account_id FROM applying) BEGIN
  SELECT RAISE(ABORT, 'incoming: money is taken up only by the link that lists it');
END;

CREATE TRIGGER threads_insert BEFORE INSERT ON threads WHEN NEW.recipient IS NOT (SELECT account_id FROM applying) BEGIN
  SELECT RAISE(ABORT, 'threads: a thread is made only by a link that confirms');
END;

CREATE TRIGGER threads_update BEFORE UPDATE ON threads
WHEN NEW.recipient IS NOT (SELECT account_id FROM applying) OR OLD.recipient <> NEW.recipient OR OLD.sender <> NEW.sender BEGIN
  SELECT RAISE(ABORT, 'threads: a thread grows only by a link that confirms');
END;

CREATE TRIGGER threads_delete BEFORE DELETE ON threads BEGIN
  SELECT RAISE(ABORT, 'threads: a thread is never deleted');
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
  WHERE NOT EXISTS (SELECT 1 FROM applying WHERE link_hash = NEW.tip AND seq = NEW.id) OR length(NEW.public_key) <> 32;
  SELECT RAISE(ABORT, 'accounts: issuers come from the genesis file, before all other accounts')
  WHERE NEW.issuer NOT IN (0, 1) OR (NEW.issuer = 1 AND EXISTS (SELECT 1 FROM accounts WHERE issuer = 0 OR height > 0));
END;

CREATE TRIGGER accounts_update BEFORE UPDATE ON accounts BEGIN
  SELECT RAISE(ABORT, 'accounts: nothing changes but the head, and that only by the next link of the account')
  WHERE NEW.id <> OLD.id OR NOT EXISTS (SELECT 1 FROM applying WHERE link_hash = NEW.tip AND account_id = NEW.id);
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

CREATE TRIGGER votes_insert BEFORE INSERT ON votes BEGIN
  SELECT RAISE(ABORT, 'votes: a ballot never goes back')
  FROM votes AS v WHERE v.slot = NEW.slot AND ((NEW.promised_epoch, NEW.promised_round, NEW.promised_node) < (v.promised_epoch, v.promised_round, v.promised_node)
    OR (v.accepted_epoch IS NOT NULL AND ((NEW.accepted_epoch, NEW.accepted_round, NEW.accepted_node)
      >= (v.accepted_epoch, v.accepted_round, v.accepted_node)) IS NOT TRUE));
END;

CREATE TRIGGER votes_update BEFORE UPDATE ON votes BEGIN
  SELECT RAISE(ABORT, 'votes: a vote stays in its slot')
  WHERE NEW.slot <> OLD.slot OR NEW.account <> OLD.account OR NEW.height <> OLD.height;
  SELECT RAISE(ABORT, 'votes: a ballot never goes back')
  WHERE (NEW.promised_epoch, NEW.promised_round, NEW.promised_node) < (OLD.promised_epoch, OLD.promised_round, OLD.promised_node)
    OR (OLD.accepted_epoch IS NOT NULL AND ((NEW.accepted_epoch, NEW.accepted_round, NEW.accepted_node)
      >= (OLD.accepted_epoch, OLD.accepted_round, OLD.accepted_node)) IS NOT TRUE);
END;

CREATE TRIGGER votes_delete BEFORE DELETE ON votes BEGIN
  SELECT RAISE(ABORT, 'votes: a vote is deleted only when its slot is decided here')
  WHERE NOT EXISTS (SELECT 1 FROM links WHERE prev_hash = OLD.slot)
    AND (OLD.account <> '' OR NOT EXISTS (SELECT 1 FROM views WHERE epoch = OLD.height));
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

SCHEMA_SQL: Final = _TABLES + _LINK_TRIGGERS + _STAGING_TRIGGERS + _MONEY_TRIGGERS + _OTHER_TRIGGERS
STAGING_TABLES: Final = ("applying", "new_postings", "new_batches", "new_confirmations", "new_outcomes", "new_accounts")


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
