"""The tables: records of every kind, the items of conversations, and what each tenant uses. Knows no wire format."""

from __future__ import annotations

RECORD_OVERHEAD = 512  # bytes a row takes besides its texts, with its indexes
ITEM_OVERHEAD = 256
PLACE_OVERHEAD = 64

ALL_TENANTS = b""

_COUNT = """
  INSERT INTO totals(tenant, num_rows, num_bytes)
    VALUES ({row}.tenant, {sign}1, {sign}{row}.num_bytes), (x'', {sign}1, {sign}{row}.num_bytes)
    ON CONFLICT(tenant) DO UPDATE SET
      num_rows = num_rows + excluded.num_rows, num_bytes = num_bytes + excluded.num_bytes;
"""


def _triggers(table: str) -> str:
    return f"""
CREATE TRIGGER {table}_added AFTER INSERT ON {table} BEGIN {_COUNT.format(row="NEW", sign="+")} END;
CREATE TRIGGER {table}_removed AFTER DELETE ON {table} BEGIN {_COUNT.format(row="OLD", sign="-")} END;
CREATE TRIGGER {table}_resized AFTER UPDATE OF num_bytes ON {table} BEGIN
  UPDATE totals SET num_bytes = num_bytes + NEW.num_bytes - OLD.num_bytes WHERE tenant IN (NEW.tenant, x'');
END;
"""


SCHEMA = f"""
CREATE TABLE records(
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL,
  id TEXT NOT NULL UNIQUE,
  tenant BLOB NOT NULL,
  created_at INTEGER NOT NULL,
  used_at REAL NOT NULL,
  expires_at REAL,
  is_held INTEGER NOT NULL DEFAULT 0,
  num_bytes INTEGER NOT NULL,
  body BLOB NOT NULL,
  extra BLOB
);
CREATE INDEX records_of_tenant ON records(tenant, kind, position);
CREATE INDEX records_by_use ON records(tenant, used_at);
CREATE INDEX records_by_end ON records(expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX records_held ON records(kind) WHERE is_held;
CREATE TABLE items(
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL,
  tenant BLOB NOT NULL,
  num_bytes INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX items_of_tenant ON items(tenant, id);
CREATE TABLE places(
  record INTEGER NOT NULL REFERENCES records(position) ON DELETE CASCADE,
  place INTEGER NOT NULL,
  item INTEGER NOT NULL REFERENCES items(number),
  is_output INTEGER NOT NULL,
  PRIMARY KEY(record, place)
) WITHOUT ROWID;
CREATE INDEX places_of_item ON places(item);
CREATE TABLE totals(tenant BLOB PRIMARY KEY, num_rows INTEGER NOT NULL, num_bytes INTEGER NOT NULL) WITHOUT ROWID;
{_triggers("records")}
{_triggers("items")}
"""
